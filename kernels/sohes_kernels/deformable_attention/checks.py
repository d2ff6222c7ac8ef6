"""Argument checks of deformable attention: level shapes, and the tensors' shapes, dtypes and devices."""

from __future__ import annotations

import sys
from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    Shapes = tuple[tuple[int, int], ...]

__all__ = ["check_tensors", "checked_shapes", "cpu_obstacle"]

_MAX_SIDE, _MAX_PIXELS = 2**24, 2**30  # exact in float32, and in int32 with borders around the levels


def checked_shapes(spatial_shapes: Sequence[tuple[int, int]]) -> Shapes:
    """Return the level shapes as integers, at least one pair."""
    try:
        shapes = tuple((_integer(height), _integer(width)) for height, width in spatial_shapes)
    except (TypeError, ValueError):  # no integer, no pair
        shapes = ()
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise ValueError(
            "spatial_shapes must hold one or more pairs of integers (height, width), each at least 1, "
            f"not {spatial_shapes!r}"
        )
    return shapes


def _integer(number: int) -> int:
    """Return a Python integer, or PyTorch's symbol for a size during export, whose value `index` would fix."""
    torch = sys.modules.get("torch")  # never imported here
    return number if torch is not None and isinstance(number, torch.SymInt) else index(number)


def check_tensors(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Raise ValueError for a shape, dtype or device outside the contract of `deformable_attention`."""
    if value.ndim != 4 or 0 in value.shape[2:]:
        raise ValueError(
            f"value must be [B, S, M, D] with at least one head and channel, not of shape {tuple(value.shape)}"
        )
    batch, n_pixels, heads, _ = value.shape
    if n_pixels != sum(height * width for height, width in shapes):
        raise ValueError(f"levels of {shapes} have {sum(h * w for h, w in shapes)} pixels, but value has {n_pixels}")
    if locations.ndim != 6 or locations.shape[-1] != 2 or locations.shape[4] == 0:
        raise ValueError(
            "sampling_locations must be [B, Q, M, L, P, 2] with at least one point, "
            f"not of shape {tuple(locations.shape)}"
        )
    expected = (batch, heads, len(shapes))
    if (locations.shape[0], locations.shape[2], locations.shape[3]) != expected:
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} must be for the B, M, L = {expected} "
            "of value and spatial_shapes"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"attention_weights must be of shape {tuple(locations.shape[:-1])}, not {tuple(weights.shape)}"
        )
    for name, tensor in (("value", value), ("sampling_locations", locations), ("attention_weights", weights)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must hold floating-point numbers, not {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, but value is on {value.device}")


def cpu_obstacle(value: Tensor, shapes: Shapes) -> str:
    """Return the obstacle to the compiled loops on these values, or an empty string."""
    if value.device.type != "cpu":
        return f"the tensors are on {value.device}, not on the CPU"
    if max(map(max, shapes)) > _MAX_SIDE or sum((height + 3) * (width + 3) for height, width in shapes) > _MAX_PIXELS:
        return f"it takes levels of up to 2^24 pixels a side and 2^30 with their borders, not {shapes}"
    return ""
