"""Choice of the backend of an operation, from its backends' obstacles.

An operation lists its backends fastest first, each with a function that returns its obstacle: "auto" takes the first
without one, and a backend requested by name runs or raises. Nothing falls back silently.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    Obstacle = Callable[[], str]

__all__ = ["can_always_run", "choose_backend", "device_obstacle", "triton_obstacle"]

_FIRST_CAPABILITY = (8, 0)
_TRUE = ("1", "true", "on", "yes", "y")


def choose_backend(op: str, backend: str, obstacles: Mapping[str, Obstacle], *, is_on_gpu: bool) -> str:
    """Return the name of the backend to run: the requested one or, for "auto", the first without an obstacle.

    While PyTorch exports or traces a model, "auto" takes the last, the reference, made of PyTorch operations only.

    Args:
        op: name of the operation, for messages.
        backend: "auto" or a key of `obstacles`.
        obstacles: obstacle of each backend, fastest first, an empty string if it can run; the last always can.
        is_on_gpu: True if the inputs are; otherwise "auto" skips "triton", although the interpreter could run it.

    Raises:
        ValueError: if the backend is unknown.
        RuntimeError: if the requested backend cannot run, with the reason.
    """
    if backend == "auto":
        if _is_exporting():
            return list(obstacles)[-1]
        able = (name for name, obstacle in obstacles.items() if (is_on_gpu or name != "triton") and not obstacle())
        return next(able)
    if backend not in obstacles:
        raise ValueError(f"backend must be one of {', '.join(sorted(('auto', *obstacles)))}, not {backend!r}")
    if reason := obstacles[backend]():
        raise RuntimeError(f"the {backend} backend of {op} cannot run: {reason}; use backend='auto' or 'reference'")
    return backend


def _is_exporting() -> bool:
    torch = sys.modules.get("torch")  # never imported here
    return torch is not None and (torch.compiler.is_exporting() or torch.jit.is_tracing())


def can_always_run() -> str:
    """Return no obstacle."""
    return ""


def triton_obstacle(*tensors: Tensor) -> str:
    """Return the obstacle to Triton kernels on float32 and 16-bit tensors of one device, or an empty string."""
    import torch

    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"its kernels take float32, bfloat16 and float16, not {tensor.dtype}"
    return device_obstacle(tensors[0].device)


def device_obstacle(device: torch.device) -> str:
    """Return the obstacle to Triton kernels on a device, or an empty string.

    They run on NVIDIA GPUs of compute capability 8.0 or above, and on any device under TRITON_INTERPRET=1 (set before
    the first import of Triton).
    """
    import torch

    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET", "0").lower() in _TRUE:
        return ""
    if device.type != "cuda":
        return f"the tensors are on {device}, not on a CUDA device (nor is TRITON_INTERPRET=1 set)"
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs and this PyTorch is for AMD's"
    capability = torch.cuda.get_device_capability(device)
    if capability < _FIRST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"it needs a GPU of compute capability 8.0, and {name} has {capability[0]}.{capability[1]}"
    return ""
