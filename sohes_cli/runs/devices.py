"""Devices and precisions: what `auto` means on this machine."""

from __future__ import annotations

import torch

from sohes_cli.errors import UsageError

__all__ = ["resolve_precision", "torch_device"]


def torch_device(device: str) -> torch.device:
    """The device of that name, with its number.

    Raises:
        UsageError: if this machine has none.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"The device {device!r} is not available.", "Use cpu, or a device that torch lists, such as cuda:0."
        ) from error


def resolve_precision(precision: str, on_cpu: bool) -> str:
    """The precision of a run: what `auto` means on this machine, `fp32` or `bf16`, and any other as it is."""
    if precision != "auto":
        return precision
    if on_cpu:
        return (
            "bf16"
            if torch.cpu.get_capabilities().get("amx_bf16") or torch.cpu.get_capabilities().get("amx_tile")
            else "fp32"
        )
    return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
