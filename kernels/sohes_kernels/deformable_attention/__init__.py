"""Multi-scale deformable attention: each query samples a few predicted points of several feature maps.

    out[b, q, m] = sum over levels l, points p of weight[b, q, m, l, p] * bilinear(value[l], location[b, q, m, l, p])

The operation of Deformable DETR without a compiled extension. The contract differs from the original in three points:
level shapes are Python integers, so that no backend synchronizes with the device, and level offsets follow from them;
locations and weights may have another dtype than the values, as a bfloat16 location is off by up to 2 pixels of 1,024;
and a non-finite location reads 0 on every device (`grid_sample` does so on CUDA only).

Source: Zhu et al. 2021, Deformable DETR, equation 3; in SOHES the pixel decoder's and the adapter's attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sohes_kernels.deformable_attention.checks import check_tensors, checked_shapes, cpu_obstacle
from sohes_kernels.dispatch import can_always_run, choose_backend, triton_obstacle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Backend", "deformable_attention"]

Backend = Literal["auto", "cpu", "reference", "triton"]


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Sample every level bilinearly at each query's points and sum the samples by weight, per head.

    Sampling follows `torch.nn.functional.grid_sample` with `align_corners=False` and zero padding: (0, 0) is the outer
    corner of the first pixel, (1, 1) that of the last. Sums are float32 (float64 for float64). The Triton backend adds
    the gradient of `value` in float32 by atomics, whose order and hence last bits vary; all its other results repeat.
    The cpu backend gives the same bits in every run with any number of threads; it uses PyTorch's number
    (`torch.set_num_threads`), at most one per head in the batch.

    Args:
        value: pixels of the concatenated levels in raster order, float [B, S, M, D] of M heads with D channels each.
        spatial_shapes: (height, width) of each of the L levels in pixels; the areas sum to S.
        sampling_locations: (x, y) of P points per level, relative to its width and height, float [B, Q, M, L, P, 2];
            may lie outside [0, 1]. A point with a non-finite coordinate reads 0 and gets no gradient. Best in float32
            for any dtype of `value`.
        attention_weights: weights of the points, unrestricted, float [B, Q, M, L, P].
        backend: "triton", "cpu" (numba), "reference" (plain PyTorch, one `grid_sample` per level) or "auto": "triton"
            for float32, bfloat16 and float16 on a CUDA device that runs Triton, "cpu" on the CPU, else "reference".

    Returns:
        Attended values, heads concatenated, [B, Q, M * D], in the dtype of `value`; differentiable once (the reference
        as often as `grid_sample`) with respect to all three tensors. The Triton and cpu backends copy non-contiguous
        inputs, and `torch.compile` breaks its graph around them.

    Raises:
        ValueError: if a shape, dtype or device does not fit the others, or the backend is unknown.
        RuntimeError: if "triton" or "cpu" is requested and cannot run, with the reason.

    Source: Zhu et al. 2021, Deformable DETR, equation 3.
    """
    shapes = checked_shapes(spatial_shapes)
    check_tensors(value, shapes, sampling_locations, attention_weights)
    inputs = (value, sampling_locations, attention_weights)
    obstacles = {
        "triton": lambda: triton_obstacle(*inputs),
        "cpu": lambda: cpu_obstacle(value, shapes),
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
