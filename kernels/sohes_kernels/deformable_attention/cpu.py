"""Multi-scale deformable attention on the CPU, forward and backward, compiled by numba, no sampled value stored.

The maps of each head are first copied to contiguous pixels with a border of zeros, one pixel before and two after: the
2 x 2 pixels of a point clamped to just outside. No corner needs a check, and the rows of consecutive queries stay in
the cache. The gradient of value accumulates in such maps as well. Rows of channels use vector registers (`lanes.py`).

A thread takes some heads and is the only writer of their results: the same bits with any number of threads.
"""

# mypy: allow-untyped-decorators, allow-untyped-calls
# reason: numba's compiled functions have other types than their source

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from torch.autograd.function import once_differentiable

from sohes_kernels.deformable_attention.lanes import (
    N_LANES,
    lanes_of,
    load_lanes,
    plus_product,
    store_lanes,
    sum_of,
    totals_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Shapes = tuple[tuple[int, int], ...]
    Floats = NDArray[np.floating[Any]]
    Integers = NDArray[np.integer[Any]]

__all__ = ["deformable_attention_cpu"]

_QUERIES = 64  # per block, which fits the L1 cache with its points
_BORDER = 3  # pixels before and after a map along each side
_THREADED = 2**20  # products of a channel and a weight from which threads pay

_compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})


@_compiled
def _fill_maps(value: Floats, b: int, m: int, offsets: Integers, maps: Floats) -> None:
    """Copy the heads from m on of an image into maps [heads, pixels with borders, width], borders untouched."""
    for pixel in range(offsets.shape[0]):
        for head in range(maps.shape[0]):
            for d in range(value.shape[3]):
                maps[head, offsets[pixel], d] = value[b, pixel, m + head, d]


@_compiled
def _read_maps(maps: Floats, offsets: Integers, value: Floats, b: int, m: int) -> None:
    """Copy maps without borders to the heads from m on of an image."""
    for pixel in range(offsets.shape[0]):
        for head in range(maps.shape[0]):
            for d in range(value.shape[3]):
                value[b, pixel, m + head, d] = maps[head, offsets[pixel], d]


@_compiled
def _locate(points: Floats, pixels: Integers, size: int, stride: int) -> None:
    """Advance pixels [N] to the lower neighbors of points [N] along one side; replace the points by fractional offsets.

    A point beyond the border, or NaN, moves to a position with zeros as both neighbors.
    """
    number = points.dtype.type
    for i in range(points.shape[0]):
        position = points[i] * number(size) - number(0.5)  # pixel i covers [i, i + 1) / size, its center has position i
        position = position if position >= number(-1) else number(size)  # false for NaN
        position = position if position < number(size) else number(size)
        low = np.floor(position)
        points[i] = position - low
        pixels[i] += (np.int32(low) + 1) * stride


@_compiled
def _read_points(locations: Floats, weights: Floats, height: int, width: int, points: Floats, pixels: Integers) -> int:
    """Read and count the points of some queries on a level, locations [queries, P, 2] and weights [queries, P].

    Fills points [3, N] with fractional offsets along x and y and weights, and pixels [N] with the lower neighbors,
    counted from the level's first pixel with its border.
    """
    n = 0
    for q in range(weights.shape[0]):
        for p in range(weights.shape[1]):
            points[0, n], points[1, n], points[2, n] = locations[q, p, 0], locations[q, p, 1], weights[q, p]
            pixels[n] = 0
            n += 1
    _locate(points[0, :n], pixels[:n], width, 1)
    _locate(points[1, :n], pixels[:n], height, width + _BORDER)
    return n


@_compiled
def _shares(points: Floats, i: int) -> tuple[float, float, float, float]:
    """Bilinear shares of the four pixels around point i, in raster order."""
    x, y, one = points[0, i], points[1, i], points.dtype.type(1)
    return (one - y) * (one - x), (one - y) * x, y * (one - x), y * x


@_compiled
def _gather(
    maps: Floats, start: int, stride: int, points: Floats, pixels: Integers, n_points: int, rows: Floats
) -> None:
    """Add weighted samples of consecutive points on a level, from `start` of maps, to rows [queries, width]."""
    width = rows.shape[1]
    for q in range(pixels.shape[0] // n_points):
        for channel in range(0, width, N_LANES):
            a = b = c = lanes_of(rows.dtype.type(0))
            d = load_lanes(rows, q * width + channel)
            for i in range(q * n_points, (q + 1) * n_points):
                shares, weight = _shares(points, i), points[2, i]
                corner = start + channel + np.int64(pixels[i]) * width
                a = plus_product(a, lanes_of(weight * shares[0]), load_lanes(maps, corner))
                b = plus_product(b, lanes_of(weight * shares[1]), load_lanes(maps, corner + width))
                c = plus_product(c, lanes_of(weight * shares[2]), load_lanes(maps, corner + stride))
                d = plus_product(d, lanes_of(weight * shares[3]), load_lanes(maps, corner + stride + width))
            store_lanes(rows, q * width + channel, sum_of(sum_of(a, b), sum_of(c, d)))


@_compiled
def _dots(maps: Floats, corner: int, stride: int, grad: Floats, q: int) -> tuple[float, float, float, float]:
    """Inner products of row q of grad [queries, width] with the four pixels from element `corner` of maps."""
    width = grad.shape[1]
    a = b = c = d = lanes_of(grad.dtype.type(0))
    for channel in range(0, width, N_LANES):
        row, pixel = load_lanes(grad, q * width + channel), corner + channel
        a = plus_product(a, row, load_lanes(maps, pixel))
        b = plus_product(b, row, load_lanes(maps, pixel + width))
        c = plus_product(c, row, load_lanes(maps, pixel + stride))
        d = plus_product(d, row, load_lanes(maps, pixel + stride + width))
    dots: tuple[float, float, float, float] = totals_of(a, b, c, d)
    return dots


@_compiled
def _scatter(maps: Floats, pixel: int, share: float, grad: Floats, q: int) -> None:
    """maps[pixel] += share * grad[q], for grad [queries, width]."""
    width = grad.shape[1]
    for channel in range(0, width, N_LANES):
        added = plus_product(load_lanes(maps, pixel + channel), lanes_of(share), load_lanes(grad, q * width + channel))
        store_lanes(maps, pixel + channel, added)


@_compiled
def _differentiate_level(
    maps: Floats, grad_maps: Floats, start: int, stride: int, points: Floats, pixels: Integers, n_points: int,
    rows: Floats, grads: Floats, needs_value: bool, needs_points: bool,
) -> None:  # fmt: skip
    """Scatter rows [queries, width] over the level from element `start` of the maps; write the points' grads [3, N].

    These are the gradients of the positions along x and y, without the weight, and of the weight.
    """
    width, one = rows.shape[1], points.dtype.type(1)
    for q in range(pixels.shape[0] // n_points):
        for i in range(q * n_points, (q + 1) * n_points):
            corner, shares, weight = start + np.int64(pixels[i]) * width, _shares(points, i), points[2, i]
            if needs_value:
                _scatter(grad_maps, corner, weight * shares[0], rows, q)
                _scatter(grad_maps, corner + width, weight * shares[1], rows, q)
                _scatter(grad_maps, corner + stride, weight * shares[2], rows, q)
                _scatter(grad_maps, corner + stride + width, weight * shares[3], rows, q)
            if needs_points:
                a, b, c, d = _dots(maps, corner, stride, rows, q)
                x, y = points[0, i], points[1, i]
                grads[0, i] = (one - y) * (b - a) + y * (d - c)
                grads[1, i] = (one - x) * (c - a) + x * (d - b)
                grads[2, i] = shares[0] * a + shares[1] * b + shares[2] * c + shares[3] * d


@_compiled
def _write_grads(
    grads: Floats, weights: Floats, height: int, width: int, grad_locations: Floats, grad_weights: Floats
) -> None:
    """Write grads [3, N] of points to grad_locations [queries, P, 2] and grad_weights [queries, P]."""
    number = grads.dtype.type
    i = 0
    for q in range(grad_weights.shape[0]):
        for p in range(grad_weights.shape[1]):
            grad_locations[q, p, 0] = grads[0, i] * weights[i] * number(width)
            grad_locations[q, p, 1] = grads[1, i] * weights[i] * number(height)
            grad_weights[q, p] = grads[2, i]
            i += 1


@_compiled
def _attend(
    value: Floats, locations: Floats, weights: Floats, shapes: Integers, offsets: Integers,
    b: int, m: int, maps: Floats, out: Floats,
) -> None:  # fmt: skip
    """out[b, :, m + head] = sum over levels l, points p, corners c of weight * share * value[corner], per head."""
    _fill_maps(value, b, m, offsets, maps)
    n_queries, n_points = weights.shape[1], weights.shape[4]
    points, pixels = np.empty((3, _QUERIES * n_points), out.dtype), np.empty(_QUERIES * n_points, np.int32)
    rows = np.empty((_QUERIES, maps.shape[2]), out.dtype)
    for first in range(0, n_queries, _QUERIES):
        last = min(first + _QUERIES, n_queries)
        for head in range(maps.shape[0]):
            rows[:] = 0
            start = head * maps.shape[1] * maps.shape[2]
            for level in range(shapes.shape[0]):
                height, width = shapes[level]
                here = (b, slice(first, last), m + head, level)
                n = _read_points(locations[here], weights[here], height, width, points, pixels)
                stride = (width + _BORDER) * maps.shape[2]
                _gather(maps, start, stride, points, pixels[:n], n_points, rows)
                start += (height + _BORDER) * stride
            out[b, first:last, m + head] = rows[: last - first, : out.shape[3]]


@_compiled
def _differentiate(
    grad: Floats, value: Floats, locations: Floats, weights: Floats, shapes: Integers, offsets: Integers,
    b: int, m: int, maps: Floats, grad_maps: Floats, grad_value: Floats, grad_locations: Floats, grad_weights: Floats,
) -> None:  # fmt: skip
    """grad_value[corner] += weight * share * grad[q] and, with dot = <grad[q], value[corner]>,
    grad_weight = sum over c of share * dot, grad_location = size * weight * sum over c of (d share / d position) * dot.

    Gradients of size 0 are skipped; without that of value, grad_maps is not used.
    """
    needs_value, needs_points = grad_value.size > 0, grad_weights.size > 0
    if needs_points:
        _fill_maps(value, b, m, offsets, maps)
    if needs_value:
        grad_maps[:] = 0
    n_queries, n_points = weights.shape[1], weights.shape[4]
    points, pixels = np.empty((3, _QUERIES * n_points), grad.dtype), np.empty(_QUERIES * n_points, np.int32)
    grads = np.empty_like(points)
    rows = np.zeros((_QUERIES, maps.shape[2]), grad.dtype)
    for first in range(0, n_queries, _QUERIES):
        last = min(first + _QUERIES, n_queries)
        for head in range(maps.shape[0]):
            rows[: last - first, : grad.shape[3]] = grad[b, first:last, m + head]
            start = head * maps.shape[1] * maps.shape[2]
            for level in range(shapes.shape[0]):
                height, width = shapes[level]
                here = (b, slice(first, last), m + head, level)
                n = _read_points(locations[here], weights[here], height, width, points, pixels)
                stride = (width + _BORDER) * maps.shape[2]
                _differentiate_level(
                    maps, grad_maps, start, stride, points, pixels[:n], n_points, rows, grads, needs_value, needs_points
                )
                if needs_points:
                    _write_grads(grads, points[2], height, width, grad_locations[here], grad_weights[here])
                start += (height + _BORDER) * stride
    if needs_value:
        _read_maps(grad_maps, offsets, grad_value, b, m)


def _run_by_heads(
    run: Callable[..., None], value: Tensor, locations: Tensor, shapes: Shapes, dtype: torch.dtype, n_maps: int
) -> None:
    """Call `run(b, m, *maps)` for all heads of all images, with n_maps zeroed maps [heads, bordered pixels, width].

    A thread takes consecutive heads, calls once per image, and reuses its maps.
    """
    batch, _, heads, channels = value.shape
    pixels = sum((height + _BORDER) * (width + _BORDER) for height, width in shapes)
    n_threads = min(torch.get_num_threads(), batch * heads) if locations.numel() // 2 * channels >= _THREADED else 1

    def run_part(part: int) -> None:
        first, last = (batch * heads * end // n_threads for end in (part, part + 1))
        size = (n_maps, min(heads, last - first), pixels, -(-channels // N_LANES) * N_LANES)
        maps = torch.zeros(size, dtype=dtype).numpy()  # torch aligns to cache lines
        for b in range(first // heads, -(-last // heads)):
            start, stop = max(first - b * heads, 0), min(last - b * heads, heads)
            run(b, start, *(part[: stop - start] for part in maps))

    if n_threads == 1:
        run_part(0)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(run_part, range(n_threads)))


def _map_offsets(shapes: Shapes) -> Integers:
    """Index of each pixel of the levels in a map with borders, int64 [S]."""
    offsets, start = [], 0
    for height, width in shapes:
        rows, columns = np.arange(1, height + 1)[:, None], np.arange(1, width + 1)
        offsets.append((start + rows * (width + _BORDER) + columns).ravel())
        start += (height + _BORDER) * (width + _BORDER)
    return np.concatenate(offsets)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Dtype of the computation."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _arrays(dtype: torch.dtype, *tensors: Tensor) -> list[Floats]:
    return [tensor.detach().to(dtype).contiguous().numpy() for tensor in tensors]


def deformable_attention_cpu(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Run the compiled loops on checked inputs; see `deformable_attention` for the contract."""
    attend = _DeformableAttention.apply
    if torch.compiler.is_compiling():  # `disable` imports the compiler, which takes seconds
        attend = torch.compiler.disable(attend, reason="torch.compile cannot trace a function compiled by numba")
    out: Tensor = attend(value, sampling_locations, attention_weights, spatial_shapes)
    return out


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        dtype = _compute_dtype(value, locations, weights)
        arrays = (*_arrays(dtype, value, locations, weights), np.array(shapes), _map_offsets(shapes))
        out = torch.empty(value.shape[0], locations.shape[1], *value.shape[2:], dtype=dtype)

        def run(b: int, m: int, maps: Floats) -> None:
            _attend(*arrays, b, m, maps, out.numpy())

        _run_by_heads(run, value, locations, shapes, dtype, 1)
        return out.flatten(2).to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[:3]
        dtype = _compute_dtype(*inputs)
        wanted = (needs[0], needs[1] or needs[2], needs[1] or needs[2])
        sizes = (x.shape if want else [0] * x.ndim for x, want in zip(inputs, wanted, strict=True))
        grads = [torch.empty(size, dtype=dtype) for size in sizes]
        (value, locations, _), shapes = inputs, ctx.shapes
        rows = grad.unflatten(2, value.shape[2:])
        arrays = (*_arrays(dtype, rows, *inputs), np.array(shapes), _map_offsets(shapes))
        outputs = [x.numpy() for x in grads]

        def run(b: int, m: int, *maps: Floats) -> None:
            _differentiate(*arrays, b, m, maps[0], maps[-1], *outputs)

        _run_by_heads(run, value, locations, shapes, dtype, 1 + needs[0])
        return *(x.to(like.dtype) if need else None for x, like, need in zip(grads, inputs, needs, strict=True)), None
