"""Which backend runs an operation, and why one that was asked for cannot.

An operation lists its backends with a check each, fastest first: "auto" takes the first that can run, and a backend asked for by
name runs or raises. Nothing falls back in silence.
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
    """Name the backend that runs: the one asked for, or the first that can if that is "auto".

    While PyTorch exports or traces a model, "auto" takes the last, the reference, because its operations are PyTorch's own.

    Args:
        op: name of the operation, for messages.
        backend: "auto" or a key of `obstacles`.
        obstacles: for each backend, fastest first, what says why it cannot run, or an empty string; the last always can.
        is_on_gpu: whether the inputs are. "auto" takes "triton" only then, though the interpreter takes inputs anywhere.

    Raises:
        ValueError: if the backend is unknown.
        RuntimeError: if the backend is asked for by name and cannot run; says why.
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
    torch = sys.modules.get("torch")  # not imported for the sake of this
    return torch is not None and (torch.compiler.is_exporting() or torch.jit.is_tracing())


def can_always_run() -> str:
    """State no obstacle."""
    return ""


def triton_obstacle(*tensors: Tensor) -> str:
    """Say why Triton's kernels cannot take these tensors of one device, or return an empty string; they take float32 and 16-bit types."""
    import torch

    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"its kernels take float32, bfloat16 and float16, not {tensor.dtype}"
    return device_obstacle(tensors[0].device)


def device_obstacle(device: torch.device) -> str:
    """Say why Triton's kernels cannot run on a device, or return an empty string.

    They run on NVIDIA GPUs of compute capability 8.0 or above, and on any device under TRITON_INTERPRET=1 (set before Triton
    is first imported).
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
