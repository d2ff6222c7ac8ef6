"""Multi-scale deformable attention: each query reads a few points of several feature maps, where it chose to look.

    out[b, q, m] = sum over levels l, points p of weight[b, q, m, l, p] * bilinear(value of level l, location[b, q, m, l, p])

The operation of Deformable DETR without an extension to compile. The contract differs from the original's in three points:
level shapes are Python integers, so that no backend waits for the device to learn them, and level offsets follow from them;
locations and weights may have another precision than the values, because a bfloat16 location is off by up to 2 pixels of 1,024;
and a location that is not a finite number reads nothing on every device (`grid_sample` does so on CUDA only).

Source: Zhu et al. 2021, Deformable DETR, equation 3; in SOHES the pixel decoder's and the adapter's attention.
"""

from __future__ import annotations

import sys
from operator import index
from typing import TYPE_CHECKING, Literal

from sohes_kernels.dispatch import can_always_run, choose_backend, triton_obstacle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Backend", "deformable_attention"]

Backend = Literal["auto", "cpu", "reference", "triton"]
_SIDE, _PIXELS = 2**24, 2**30  # what float32 counts exactly, and what int32 counts with borders around the levels


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Sample every level bilinearly at each query's points and add up the samples by weight, a head at a time.

    A point reads as `torch.nn.functional.grid_sample` does with `align_corners=False` and zero padding: (0, 0) is the outer corner
    of the first pixel, (1, 1) that of the last, pixels beyond the border are 0. Sums are kept in float32 (float64 for float64).
    The Triton backend adds the gradient of `value` in float32 by atomic adds, whose order, and so whose last bits, vary from run to run;
    everything else it computes is the same in every run. The cpu backend's results are the same bits in every run, with any number
    of threads; it takes as many as PyTorch does (`torch.set_num_threads`), but no more than there are heads in the batch.

    Args:
        value: the levels' pixels in raster order, one level after the other, a float tensor [B, S, M, D] of M heads with D channels each.
        spatial_shapes: (height, width) of each of the L levels, in pixels; heights times widths add up to S.
        sampling_locations: (x, y) of P points a level, relative to the level's width and height, float [B, Q, M, L, P, 2]; any
            number, points outside [0, 1] included. A point with a coordinate that is not finite reads 0 and gets no gradient.
            Best in float32 whatever the precision of `value`.
        attention_weights: the points' weights, any numbers, float [B, Q, M, L, P].
        backend: "triton", "cpu" (numba), "reference" (plain PyTorch, one `grid_sample` a level) or "auto", which is "triton" for
            float32, bfloat16 and float16 on a CUDA device where Triton can run, "cpu" for tensors of any precision on the CPU, and
            else "reference".

    Returns:
        The attended values, heads side by side, [B, Q, M * D], in the precision of `value`; differentiable once (the reference
        as often as `grid_sample`) with respect to all three tensors. The Triton and cpu backends
        copy inputs that are not contiguous, and `torch.compile` breaks its graph around them.

    Raises:
        ValueError: if a shape, precision or device does not fit the others, or the backend is unknown.
        RuntimeError: if "triton" or "cpu" is asked for and cannot run; says why.

    Source: Zhu et al. 2021, Deformable DETR, equation 3.
    """
    shapes = _checked_shapes(spatial_shapes)
    _check_tensors(value, shapes, sampling_locations, attention_weights)
    inputs = (value, sampling_locations, attention_weights)
    obstacles = {
        "triton": lambda: triton_obstacle(*inputs),
        "cpu": lambda: _cpu_obstacle(value, shapes),
        "reference": can_always_run,
    }
    chosen = choose_backend("deformable_attention", backend, obstacles, is_on_gpu=value.is_cuda)
    if chosen == "triton":
        from sohes_kernels.deformable_attention.triton_kernel import deformable_attention_triton as attend
    elif chosen == "cpu":
        from sohes_kernels.deformable_attention.cpu import deformable_attention_cpu as attend
    else:
        from sohes_kernels.deformable_attention.reference import deformable_attention_reference as attend
    out: Tensor = attend(value, shapes, sampling_locations, attention_weights)
    return out


def _checked_shapes(spatial_shapes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    try:
        shapes = tuple((_integer(height), _integer(width)) for height, width in spatial_shapes)
    except (TypeError, ValueError):  # no integer, no pair
        shapes = ()
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise ValueError(
            f"spatial_shapes must hold one or more pairs of integers (height, width), each at least 1, not {spatial_shapes!r}"
        )
    return shapes


def _integer(number: int) -> int:
    """A Python integer, but for a size that PyTorch knows as a symbol while it exports a model: `index` would fix its value."""
    torch = sys.modules.get("torch")  # not imported for the sake of this
    return number if torch is not None and isinstance(number, torch.SymInt) else index(number)


def _check_tensors(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> None:
    """Compare the tensors' shapes, precisions and devices with one another."""
    if value.ndim != 4 or 0 in value.shape[2:]:
        raise ValueError(
            f"value must be [B, S, M, D] with at least one head and channel, not of shape {tuple(value.shape)}"
        )
    batch, n_pixels, heads, _ = value.shape
    if n_pixels != sum(height * width for height, width in shapes):
        raise ValueError(f"levels of {shapes} have {sum(h * w for h, w in shapes)} pixels, but value has {n_pixels}")
    if locations.ndim != 6 or locations.shape[-1] != 2 or locations.shape[4] == 0:
        raise ValueError(
            f"sampling_locations must be [B, Q, M, L, P, 2] with at least one point, not of shape {tuple(locations.shape)}"
        )
    expected = (batch, heads, len(shapes))
    if (locations.shape[0], locations.shape[2], locations.shape[3]) != expected:
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} must be for the B, M, L = {expected} of value and spatial_shapes"
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


def _cpu_obstacle(value: Tensor, shapes: tuple[tuple[int, int], ...]) -> str:
    """Why the compiled loops cannot take these values, or an empty string."""
    if value.device.type != "cpu":
        return f"the tensors are on {value.device}, not on the CPU"
    if max(map(max, shapes)) > _SIDE or sum((height + 3) * (width + 3) for height, width in shapes) > _PIXELS:
        return f"it takes levels of up to 2^24 pixels a side and 2^30 with their borders, not {shapes}"
    return ""
