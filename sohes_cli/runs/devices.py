"""Devices and precisions: allowed names, and resolution of `auto` on this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sohes_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["check_device", "check_device_name", "resolve_precision", "torch_device"]

_DEVICE_NAME = re.compile(r"auto|(cpu|cuda|hpu|mlu|mps|mtia|musa|npu|xla|xpu)(:\d+)?")


def check_device(device: str) -> None:
    """Refuse a --device of training other than `auto` and `cpu` with a UsageError."""
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"--device must be auto or cpu, not {device!r}.",
            "Choose GPUs with CUDA_VISIBLE_DEVICES or accelerate launch.",
        )


def check_device_name(device: str) -> None:
    """Refuse a word that is no device of PyTorch with a UsageError, without importing PyTorch."""
    if not _DEVICE_NAME.fullmatch(device):
        raise _unavailable(device)


def torch_device(device: str) -> torch.device:
    """Return the device of a name, with its number.

    Raises:
        UsageError: if this machine lacks it.
    """
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise _unavailable(device) from error


def _unavailable(device: str) -> UsageError:
    return UsageError(
        f"The device {device!r} is not available.", "Use cpu, or a device that torch lists, such as cuda:0."
    )


def resolve_precision(precision: str, on_cpu: bool) -> str:
    """Return the precision of a run: `fp32` or `bf16` in place of `auto`, any other unchanged."""
    if precision != "auto":
        return precision
    import torch

    if on_cpu:
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = capabilities.get("amx_bf16") or capabilities.get("amx_tile")
    else:
        has_bf16 = torch.cuda.is_bf16_supported()
    return "bf16" if has_bf16 else "fp32"
