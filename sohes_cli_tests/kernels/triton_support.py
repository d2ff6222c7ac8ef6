"""Triton kernels without a GPU, in separate processes.

Triton decides at its first import whether it interprets or compiles kernels, so one process cannot do both, and neither
may affect the rest of the suite. Two processes are reused by all tests:

    run_interpreted   calls a function under TRITON_INTERPRET=1; kernels run on CPU tensors
    compile_launches  calls a function whose kernel launches compile for a GPU and run nothing

The function is at module level, its arguments can be pickled, it creates its tensors itself, and its exceptions are
raised here. `compile_launches` records the launches of the operation itself, with their dtypes, block sizes and
specializations, so a test compiles exactly what users run.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SHARED_BYTES", "CompiledKernel", "compile_launches", "needs_gpu", "needs_triton", "run_interpreted"]

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # compute capability -> shared memory that one program may have
TIME_LIMIT_S = 250
INTERPRETED = {"TRITON_INTERPRET": "1"}
COMPILED = {"TRITON_INTERPRET": "0", "TRITON_ALWAYS_COMPILE": "1", "TRITON_DEFAULT_FP_FUSION": "1"}


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


needs_triton = pytest.mark.skipif(not _has_triton(), reason="Triton has no package for this platform")
_gpu_is_missing = pytest.mark.skipif(not _has_gpu(), reason="no CUDA device")


def needs_gpu(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that `pytest -m gpu` selects and that is skipped where there is no CUDA device."""
    marked: Callable[..., Any] = pytest.mark.gpu(_gpu_is_missing(test))
    return marked


@dataclass(frozen=True)
class CompiledKernel:
    """A compiled launch.

    Args:
        name: name of the kernel.
        shared_bytes: shared memory per program.
        registers: registers per thread.
        stack_bytes: stack per thread, with spilled registers.
        ptx: source of the machine code.
        grid: numbers of programs.
        arguments: positional arguments of the kernel: arrays as of the launch, and integers.
    """

    name: str
    shared_bytes: int
    registers: int
    stack_bytes: int
    ptx: str = field(repr=False)
    grid: tuple[int, ...] = field(repr=False)
    arguments: dict[str, Any] = field(repr=False)


def run_interpreted(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*arguments)` from the process in which Triton interprets kernels."""
    return _process("interpreter").submit(function, *arguments).result(TIME_LIMIT_S)


def compile_launches(function: Callable[..., Any], *arguments: Any, capability: int) -> list[CompiledKernel]:
    """Compile each kernel that `function(*arguments)` launches, in order, for compute capability 80 or 90.

    The function uses CPU tensors, so it calls the launchers and not the dispatch; outputs are left unwritten.
    """
    return list(_process("compiler").submit(_recorded_launches, function, arguments, capability).result(TIME_LIMIT_S))


@cache
def _process(kind: str) -> ProcessPoolExecutor:
    variables = INTERPRETED if kind == "interpreter" else COMPILED
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare, initargs=(variables,))


def _prepare(variables: dict[str, str]) -> None:
    """Set the environment before anything imports Triton, and leave the processor to the other process."""
    os.environ.update(variables)
    import torch

    torch.set_num_threads(1)


class _OfflineDriver:
    """Replacement of Triton's CUDA driver for compilation without a GPU."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # one cache of compiled kernels each

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def _recorded_launches(
    function: Callable[..., Any], arguments: tuple[Any, ...], capability: int
) -> list[CompiledKernel]:
    """Compute `compile_launches` in the compiling process."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    launch, launched = JITFunction.run, []

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:  # noqa: ARG001
        compiled = launch(kernel, *args, grid=grid, warmup=True, **options)
        launched.append((compiled, tuple(grid), dict(zip(kernel.arg_names, map(_as_array, args), strict=False))))
        return compiled

    driver.set_active(_OfflineDriver(capability))
    with tempfile.TemporaryDirectory() as folder:
        with (
            mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": folder}),
            mock.patch.object(JITFunction, "run", compile_only),
        ):
            function(*arguments)
        return [_described(*launch, Path(folder)) for launch in launched]


def _as_array(argument: Any) -> Any:
    """Copy a tensor to an array; its bits, for a dtype that NumPy lacks."""
    import torch

    if not isinstance(argument, torch.Tensor):
        return argument
    values = argument.detach()
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy().copy()


def _described(compiled: Any, grid: tuple[int, ...], arguments: dict[str, Any], folder: Path) -> CompiledKernel:
    """Read the use of resources from the machine code, as NVIDIA's own tool reports it."""
    from triton import knobs

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if found is None:
        raise RuntimeError(f"no use of resources in the report on {compiled.metadata.name}: {report}")
    resources = compiled.metadata.shared, int(found[1]), int(found[2])
    return CompiledKernel(compiled.metadata.name, *resources, compiled.asm["ptx"], grid, arguments)
