"""Shared parts of differentiable benchmarks: forward and backward calls, `torch.compile`, and the check in float64.

The forward mode runs without autograd, as inference does. Forward and backward return the gradients of all inputs, and
the check compares each of them by name.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from sohes_kernels.dispatch import triton_obstacle
from sohes_kernels.tolerances import RELATIVE_RMS, relative_rms

from sohes_benchmarks.workload import Provider, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from sohes_benchmarks.rows import Case
    from sohes_benchmarks.workload import Plan

    Operation = Callable[..., Tensor]

__all__ = [
    "BACKWARD",
    "FORWARD",
    "compile_obstacle",
    "compiled",
    "differentiable_workload",
    "host_obstacle",
    "kernel_obstacle",
    "warmed",
]

Result = TypeVar("Result")
FORWARD, BACKWARD = "forward", "forward+backward"
_COMPILED_CALLS = 3  # before a compiled function is timed


def differentiable_workload(
    case: Case,
    plan: Plan,
    reference: Operation,
    inputs: Mapping[str, Tensor],
    backends: Mapping[str, tuple[str, Operation]],
    *,
    compulsory_bytes: int,
    compulsory_flops: int,
) -> Workload:
    """The reference, `torch.compile` of it and the backends on one case, held against the reference in float64.

    Args:
        case: its mode is `FORWARD` or `BACKWARD`, its type the one whose bound holds.
        plan: how the run is done.
        reference: takes the values of `inputs` in order and returns one tensor.
        inputs: the differentiable inputs by name, on the plan's device.
        backends: by name, why it cannot run (or an empty string), and what takes the inputs as the reference does.
        compulsory_bytes: see `Row`.
        compulsory_flops: see `Row`.
    """
    on = plan.device
    providers = (
        Provider("reference", lambda: _pass(reference, inputs, case.mode), device=on),
        Provider(
            "torch.compile", lambda: warmed(_pass(compiled(reference), inputs, case.mode)), compile_obstacle(plan), on
        ),
        *(
            Provider(name, lambda operation=operation: _pass(operation, inputs, case.mode), obstacle, on)  # type: ignore[misc]
            for name, (obstacle, operation) in backends.items()
        ),
    )
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    bound = RELATIVE_RMS[getattr(torch, case.dtype)]
    return Workload(
        case,
        providers,
        lambda result, truth: _difference(result, truth, bound),
        lambda: _pass(reference, wide, case.mode)(),
        compulsory_bytes,
        compulsory_flops,
    )


def _pass(operation: Operation, inputs: Mapping[str, Tensor], mode: str) -> Callable[[], dict[str, Tensor]]:
    """A call that returns the output, and in the backward mode the gradient of each input, by name."""
    if mode == FORWARD:

        def forward() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"output": operation(*inputs.values())}

        return forward
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    upstream: list[Tensor] = []

    def forward_and_backward() -> dict[str, Tensor]:
        output = operation(*leaves.values())
        if not upstream:
            upstream.append(_upstream(output))
        gradients = torch.autograd.grad(output, list(leaves.values()), upstream[0])
        return {
            "output": output.detach(),
            **{f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)},
        }

    return forward_and_backward


def _upstream(output: Tensor) -> Tensor:
    """Draw gradients: multiples of 1/4 up to 2, exact in every type."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(1, 9, output.shape, generator=generator) / 4).to(output)


def _difference(result: Mapping[str, Tensor], truth: Mapping[str, Tensor], bound: float) -> str:
    if result.keys() != truth.keys():
        return f"it returns {', '.join(result)} where the reference returns {', '.join(truth)}"
    for name, expected in truth.items():
        if result[name].shape != expected.shape:
            return f"{name} has shape {tuple(result[name].shape)} and not {tuple(expected.shape)}"
    distances = {name: relative_rms(result[name], expected) for name, expected in truth.items()}
    far = [f"{name} by {distance:.2g}" for name, distance in distances.items() if not distance <= bound]
    return f"relative RMS over {bound:g}: {', '.join(far)}" if far else ""


def compiled(operation: Operation) -> Operation:
    """`torch.compile` of an operation for fixed shapes, forgetting what was compiled before."""
    torch.compiler.reset()
    result: Operation = torch.compile(operation, dynamic=False)
    return result


def warmed(call: Callable[[], Result]) -> Callable[[], Result]:
    """The call itself, after the first ones, which compile."""
    for _ in range(_COMPILED_CALLS):
        call()
    return call


def compile_obstacle(plan: Plan) -> str:
    """Why `torch.compile` is left out or cannot run, or an empty string."""
    if plan.quick:
        return "its compilation takes longer than all of a quick run"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "it needs Python's header files to build, and they are not installed"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if plan.device == "cpu" and shutil.which(compiler) is None:
        return f"on a CPU it needs a C++ compiler, and there is no {compiler}"
    if plan.device == "cuda" and not any(
        shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "clang") if name
    ):
        return "on a GPU it needs a C compiler, and there is none"
    return ""


def kernel_obstacle(plan: Plan, *tensors: Tensor) -> str:
    """Why Triton's kernels cannot be timed on these tensors, or an empty string."""
    if plan.device == "cpu":
        return "it needs a GPU"
    if obstacle := triton_obstacle(*tensors):
        return obstacle
    from triton import knobs

    return (
        "TRITON_INTERPRET=1 is set, and the time of an interpreted kernel says nothing"
        if knobs.runtime.interpret
        else ""
    )


def host_obstacle(plan: Plan) -> str:
    """Why a backend of the host is left out, or an empty string."""
    return "" if plan.device == "cpu" else "the inputs are on the GPU"
