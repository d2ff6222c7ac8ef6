"""Exact region merging on a GPU: one program per image, one launch per batch; the merges of the plain scan.

Two arrays hold the edges of an image: `pairs`, the joined regions as low << 16 | high, and `keys`, the cosine. A merge
of a and b is one pass over them: it finds the edges of a and b and, among all others, the best one. Then the edges of
the new region are measured, 16 at a time: float32 sums, products and their sums in float64, the cosine rounded to
float32, as on the CPU. Key and pair packed into one integer order the edges, ties included: a maximum finds the next
merge.

A region with many edges (a background that absorbs patch after patch) hardly turns at a merge, so its edges keep upper
bounds, and only bounds above the best cosine are replaced by the cosine:

    angle(a', c) >= angle(a, c) - angle(a, a')   =>   key' = key cos(angle(a, a')) + sqrt(1 - key^2) sin(angle(a, a'))

The sign bit of a pair marks its key as a bound. Scratch memory is global and private to a program; `tl.debug_barrier`
separates writes of some threads from reads by others.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# reason: kernel arguments are Triton pointers and scalars, which have no Python types

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_CHANNELS", "MAX_REGIONS", "merge_graphs_triton"]

MAX_REGIONS = 2**15 - 1  # of an image: two indices and a bit make 32 bits; one pair is reserved
MAX_CHANNELS = 2**12  # a thread holds its share of two rows at a time

_DEAD_PAIR = tl.constexpr(2**31 - 1)  # joins no two regions
_BOUND = tl.constexpr(-(2**31))
_DEAD_KEY = tl.constexpr(-4.0)
_ABOVE_ALL = tl.constexpr(2.0)
_NOTHING = tl.constexpr(-(2**63))
_NO_MERGE = tl.constexpr(-1)
_ROUNDING = tl.constexpr(2e-7)  # above the largest excess of a cosine over its float32
_MARGIN = tl.constexpr(1e-6)  # above the rounding of the formula, so that bounds are strict
_PRECISION = tl.constexpr(2.3e-16)  # per channel, of a float64 inner product of unit vectors


@triton.jit
def _order_of(key):
    """Integer with the order of the float32."""
    bits = key.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key_of(packed):
    """Float32 in the upper half of a packed integer."""
    order = (packed >> 32).to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _packed(key, low_bits):
    """Key and 32 more bits as one integer, ordered by the key first, int64."""
    return (_order_of(key).to(tl.int64) << 32) | low_bits.to(tl.int64)


@triton.jit
def _ends(pair):
    """Regions of a pair, the lower first."""
    return (pair >> 16) & 0x7FFF, pair & 0xFFFF


@triton.jit
def _pair_of(x, y):
    """Pair of two regions."""
    return (tl.minimum(x, y) << 16) | tl.maximum(x, y)


@triton.jit
def _inner_products(sums_ptr, rows_x, rows_y, mask, C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """products[n] = <sums[rows_x[n]], sums[rows_y[n]]>, float64 [BLOCK_N]; `rows_x` may be a single row."""
    products = tl.zeros((BLOCK_N, BLOCK_C), tl.float64)
    for start in tl.static_range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask_c = (offs_c < C)[None, :]
        x = tl.load(sums_ptr + rows_x[:, None] * C + offs_c[None, :], mask=mask_c, other=0.0)
        y = tl.load(sums_ptr + rows_y[:, None] * C + offs_c[None, :], mask=mask[:, None] & mask_c, other=0.0)
        products += x.to(tl.float64) * y.to(tl.float64)
    return tl.sum(products, 1)


@triton.jit
def _cosine(product, norms):
    """cosine = float32(product / norms), 0 for a zero feature, never a negative zero."""
    cosine = (product / tl.where(norms > 0, norms, 1.0)).to(tl.float32)
    return tl.where((norms > 0) & (cosine != 0), cosine, 0.0)


@triton.jit
def _raised(key, cosine, sine):
    """bound = key cosine + sqrt(1 - key^2) sine + margin: a cosine of at most `key` after one vector turns."""
    key += _ROUNDING
    bound = key * cosine + tl.sqrt(tl.maximum((1 - key) * (1 + key), 0.0)) * sine + _MARGIN
    return tl.where(key >= cosine, _ABOVE_ALL, bound)


@triton.jit(do_not_specialize=["n_rows"])
def _norms_kernel(sums_ptr, norms_ptr, n_rows, C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """norms[n] = sqrt(sum of sums[n]^2), float64, for the rows of all images."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n_rows
    rows = tl.where(mask_n, offs_n, 0)
    squares = _inner_products(sums_ptr, rows, rows, mask_n, C, BLOCK_N, BLOCK_C)
    tl.store(norms_ptr + offs_n, tl.sqrt(squares), mask=mask_n)


@triton.jit(do_not_specialize=["n_blocks"])
def _measure_kernel(
    sums_ptr, norms_ptr, pairs_ptr, keys_ptr, row_starts_ptr, edge_starts_ptr, n_blocks,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """keys[e] = cosine of the two regions of edge e; a program takes BLOCK_N edges of one image."""
    image, block = (tl.program_id(0) // n_blocks).to(tl.int64), (tl.program_id(0) % n_blocks).to(tl.int64)
    row_start, edge_start = tl.load(row_starts_ptr + image), tl.load(edge_starts_ptr + image)
    offs_e = edge_start + block * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_e = offs_e < tl.load(edge_starts_ptr + image + 1)
    low, high = _ends(tl.load(pairs_ptr + offs_e, mask=mask_e, other=0))
    sums_ptr += row_start * C
    product = _inner_products(sums_ptr, low, high, mask_e, C, BLOCK_N, BLOCK_C)
    norms = tl.load(norms_ptr + row_start + low) * tl.load(norms_ptr + row_start + high)
    tl.store(keys_ptr + offs_e, _cosine(product, norms), mask=mask_e)


@triton.jit
def _leaders(best, bounds, key, pair, offs_e):
    """Update the best measured edge and the largest bound per element of a block with one more block."""
    best = tl.maximum(best, tl.where(pair >= 0, _packed(key, pair ^ _DEAD_PAIR), _NOTHING))
    return best, tl.maximum(bounds, tl.where(pair < 0, _packed(key, offs_e), _NOTHING))


@triton.jit
def _largest(bounds, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr):
    """Reduce BLOCK_E bounds to the maxima of BLOCK_N groups."""
    return tl.max(tl.reshape(bounds, (BLOCK_N, BLOCK_E // BLOCK_N)), 1)


@triton.jit
def _scan(
    pairs_ptr, keys_ptr, marks_ptr, list_ptr, n_edges, a, b, larger, merge, has_bounds, cosine, sine,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pass over the edges before b joins a; `larger` is the one of the two with more edges.

    The edge between a and b is removed. The neighbors of `larger` get the mark `merge`; with bounds, its edges get new
    ends and raised keys. All other edges of a and b are listed.

    Returns:
        The number of listed edges; the best measured edge not listed, its key packed with pair ^ _DEAD_PAIR; and
        BLOCK_N bounds including the largest, their keys packed with the index of the edge.
    """
    best = tl.full((BLOCK_E,), _NOTHING, tl.int64)
    bounds = tl.full((BLOCK_E,), _NOTHING, tl.int64)
    n_listed = tl.zeros((), tl.int32)
    for start in range(0, n_edges, BLOCK_E):
        offs_e = start + tl.arange(0, BLOCK_E)
        mask_e = offs_e < n_edges
        pair = tl.load(pairs_ptr + offs_e, mask=mask_e, other=_DEAD_PAIR)
        key = tl.load(keys_ptr + offs_e, mask=mask_e, other=_DEAD_KEY)
        low, high = _ends(pair)
        has_low, has_high = (low == a) | (low == b), (high == a) | (high == b)
        is_touched = has_low | has_high
        is_between = has_low & has_high
        neighbor = tl.where(has_low, high, low)
        is_of_larger = ((low == larger) | (high == larger)) & (is_between == 0)
        is_raised = (is_of_larger & has_bounds) != 0
        is_listed = is_touched & (is_between == 0) & (is_raised == 0)
        taken = is_listed.to(tl.int32)
        n_touched = tl.sum(taken + (is_touched.to(tl.int32) << 16), 0)  # both numbers in one sum
        if n_touched != 0:
            tl.store(marks_ptr + neighbor, merge + tl.zeros_like(neighbor), mask=is_of_larger)
            tl.store(list_ptr + n_listed + tl.cumsum(taken, 0) - taken, offs_e, mask=is_listed)
            n_listed += n_touched & 0xFFFF
            renamed = _pair_of(a, neighbor) | _BOUND
            pair = tl.where(is_raised, renamed, tl.where(is_touched, _DEAD_PAIR, pair))
            key = tl.where(is_raised, _raised(key, cosine, sine), tl.where(is_touched, _DEAD_KEY, key))
            tl.store(pairs_ptr + offs_e, pair, mask=is_raised | is_between)
            tl.store(keys_ptr + offs_e, key, mask=is_raised | is_between)
        best, bounds = _leaders(best, bounds, key, pair, offs_e)
    return n_listed, tl.max(best, 0), _largest(bounds, BLOCK_E, BLOCK_N)


@triton.jit
def _rescan(pairs_ptr, keys_ptr, n_edges, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr):
    """Find the best measured edge and BLOCK_N bounds including the largest, both packed as by `_scan`."""
    best = tl.full((BLOCK_E,), _NOTHING, tl.int64)
    bounds = tl.full((BLOCK_E,), _NOTHING, tl.int64)
    for start in range(0, n_edges, BLOCK_E):
        offs_e = start + tl.arange(0, BLOCK_E)
        mask_e = offs_e < n_edges
        pair = tl.load(pairs_ptr + offs_e, mask=mask_e, other=_DEAD_PAIR)
        key = tl.load(keys_ptr + offs_e, mask=mask_e, other=_DEAD_KEY)
        best, bounds = _leaders(best, bounds, key, pair, offs_e)
    return tl.max(best, 0), _largest(bounds, BLOCK_E, BLOCK_N)


@triton.jit
def _measure_listed(
    sums_ptr, norms_ptr, pairs_ptr, keys_ptr, marks_ptr, list_ptr, n_listed, a, b, norm, larger, merge, best,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Set the new ends and cosines of the listed edges; remove edges to marked neighbors, which `larger` has already.

    Returns:
        The number of removed edges, and the better of `best` and the best listed edge.
    """
    n_dead = tl.zeros((), tl.int32)
    for start in range(0, n_listed, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < n_listed
        edge = tl.load(list_ptr + offs_n, mask=mask_n, other=0)
        low, high = _ends(tl.load(pairs_ptr + edge, mask=mask_n, other=_DEAD_PAIR))
        neighbor = tl.where(mask_n, tl.where((low == a) | (low == b), high, low), 0)
        is_marked = tl.load(marks_ptr + neighbor, mask=mask_n, other=_NO_MERGE) == merge
        is_alive = mask_n & ((low == larger) | (high == larger) | (is_marked == 0))
        product = _inner_products(sums_ptr, a + tl.zeros((1,), tl.int32), neighbor, is_alive, C, BLOCK_N, BLOCK_C)
        key = _cosine(product, norm * tl.load(norms_ptr + neighbor, mask=is_alive, other=0.0))
        key = tl.where(is_alive, key, _DEAD_KEY)
        pair = tl.where(is_alive, _pair_of(a, neighbor), _DEAD_PAIR)
        tl.debug_barrier()  # all warps read before one writes
        tl.store(keys_ptr + edge, key, mask=mask_n)
        tl.store(pairs_ptr + edge, pair, mask=mask_n)
        n_dead += tl.sum((mask_n & (is_alive == 0)).to(tl.int32), 0)
        best = tl.maximum(best, tl.max(_packed(key, pair ^ _DEAD_PAIR), 0))
    return n_dead, best


@triton.jit
def _measure_bounds(
    sums_ptr, norms_ptr, pairs_ptr, keys_ptr, bounds, best,
    C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Replace the bounds above the best key by the cosines."""
    mask_n = (bounds >> 32) > (best >> 32)
    edge = tl.where(mask_n, bounds & 0xFFFFFFFF, 0).to(tl.int32)
    pair = tl.load(pairs_ptr + edge, mask=mask_n, other=0) & _DEAD_PAIR
    low, high = _ends(pair)
    product = _inner_products(sums_ptr, low, high, mask_n, C, BLOCK_N, BLOCK_C)
    key = _cosine(product, tl.load(norms_ptr + low) * tl.load(norms_ptr + high))
    tl.debug_barrier()
    tl.store(keys_ptr + edge, key, mask=mask_n)
    tl.store(pairs_ptr + edge, pair, mask=mask_n)


@triton.jit
def _drop_dead(pairs_ptr, keys_ptr, n_edges, BLOCK_E: tl.constexpr):
    """Move the remaining edges to the front; return their number."""
    n_alive = tl.zeros((), tl.int32)
    for start in range(0, n_edges, BLOCK_E):
        offs_e = start + tl.arange(0, BLOCK_E)
        pair = tl.load(pairs_ptr + offs_e, mask=offs_e < n_edges, other=_DEAD_PAIR)
        key = tl.load(keys_ptr + offs_e, mask=offs_e < n_edges, other=_DEAD_KEY)
        is_alive = pair != _DEAD_PAIR
        slot = n_alive + tl.cumsum(is_alive.to(tl.int32), 0) - 1  # never beyond the blocks already read
        tl.debug_barrier()
        tl.store(pairs_ptr + slot, pair, mask=is_alive)
        tl.store(keys_ptr + slot, key, mask=is_alive)
        n_alive += tl.sum(is_alive.to(tl.int32), 0)
    tl.debug_barrier()
    return n_alive


@triton.jit(do_not_specialize=["n_thresholds", "many", "round_cost"])
def _merge_kernel(
    sums_ptr, norms_ptr, degrees_ptr, marks_ptr, merged_ptr, similarities_ptr,  # by row
    pairs_ptr, keys_ptr, list_ptr,  # by edge
    row_starts_ptr, edge_starts_ptr, thresholds_ptr, counts_ptr, n_thresholds, many, round_cost,
    C: tl.constexpr, BLOCK_ROW: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """merged[m], similarities[m] = pair, cosine of merge m of an image; counts[t] = merges down to thresholds[t]."""
    image = tl.program_id(0).to(tl.int64)
    row_start, edge_start = tl.load(row_starts_ptr + image), tl.load(edge_starts_ptr + image)
    n_edges = (tl.load(edge_starts_ptr + image + 1) - edge_start).to(tl.int32)
    sums_ptr += row_start * C
    norms_ptr += row_start
    degrees_ptr += row_start
    marks_ptr += row_start
    merged_ptr += row_start
    similarities_ptr += row_start
    pairs_ptr += edge_start
    keys_ptr += edge_start
    list_ptr += edge_start
    offs_c = tl.arange(0, BLOCK_ROW)[None, :]  # 2-D, or blocks of edges would get the same layout
    mask_c = offs_c < C

    n_alive, n_merges = n_edges, tl.zeros((), tl.int32)
    many += tl.zeros((), tl.int32)
    best, bounds = _rescan(pairs_ptr, keys_ptr, n_edges, BLOCK_E, BLOCK_N)
    for t in range(n_thresholds):
        level = _order_of(tl.load(thresholds_ptr + t)).to(tl.int64)
        while (best >> 32) >= level:
            pair = (best & 0xFFFFFFFF).to(tl.int32) ^ _DEAD_PAIR
            a, b = _ends(pair)
            tl.store(merged_ptr + n_merges, pair)
            tl.store(similarities_ptr + n_merges, _key_of(best))
            degree_a, degree_b = tl.load(degrees_ptr + a), tl.load(degrees_ptr + b)
            larger = tl.where(degree_a >= degree_b, a, b)
            old_norm = tl.load(norms_ptr + larger)

            row_a = tl.load(sums_ptr + a * C + offs_c, mask=mask_c, other=0.0)
            row_b = tl.load(sums_ptr + b * C + offs_c, mask=mask_c, other=0.0)
            row = row_a + row_b
            tl.debug_barrier()  # a row of few channels is read by every warp and written by one
            tl.store(sums_ptr + a * C + offs_c, row, mask=mask_c)
            norm = tl.sqrt(tl.sum(row.to(tl.float64) * row.to(tl.float64)))
            degree = degree_a + degree_b
            has_bounds = degree >= many
            cosine, sine = tl.full((), 1.0, tl.float32), tl.full((), 0.0, tl.float32)
            if has_bounds:
                row_old = tl.where(larger == a, row_a, row_b)
                norms = norm * old_norm
                turn = tl.sum(row.to(tl.float64) * row_old.to(tl.float64)) / tl.where(norms > 0, norms, 1.0)
                turn = tl.where(norms > 0, turn - _PRECISION * (C + 8), -1.0)
                turn = tl.minimum(tl.maximum(turn, -1.0), 1.0)
                cosine, sine = turn.to(tl.float32), tl.sqrt((1 - turn) * (1 + turn)).to(tl.float32)
            n_listed, best, bounds = _scan(
                pairs_ptr, keys_ptr, marks_ptr, list_ptr, n_edges, a, b, larger, n_merges, has_bounds, cosine, sine,
                BLOCK_E, BLOCK_N,
            )  # fmt: skip
            tl.debug_barrier()
            tl.store(norms_ptr + a, norm)
            n_dead, best = _measure_listed(
                sums_ptr, norms_ptr, pairs_ptr, keys_ptr, marks_ptr, list_ptr, n_listed,
                a, b, norm, larger, n_merges, best, C, BLOCK_N, BLOCK_C,
            )  # fmt: skip
            tl.store(degrees_ptr + a, n_listed - n_dead + tl.where(has_bounds, tl.maximum(degree_a, degree_b), 0))
            tl.debug_barrier()
            n_rounds = tl.zeros((), tl.int32)
            while (tl.max(bounds, 0) >> 32) > (best >> 32):
                n_rounds += 1
                _measure_bounds(sums_ptr, norms_ptr, pairs_ptr, keys_ptr, bounds, best, C, BLOCK_N, BLOCK_C)
                tl.debug_barrier()
                best, bounds = _rescan(pairs_ptr, keys_ptr, n_edges, BLOCK_E, BLOCK_N)
            if has_bounds & (n_rounds * round_cost > degree):
                many = 2 * degree  # bounds this close do not pay; retry when the region has grown
            n_merges += 1
            n_alive -= 1 + n_dead
            if (n_edges > BLOCK_E) & (2 * n_alive < n_edges):
                n_edges = _drop_dead(pairs_ptr, keys_ptr, n_edges, BLOCK_E)
        tl.store(counts_ptr + image * n_thresholds + t, n_merges)


def launch_config(channels: int) -> dict[str, Any]:
    """Choose block sizes and warps of the merging kernel for C channels.

    With 8 warps, in the smaller kernels too, a thread has 4 of BLOCK_E edges and 8 of BLOCK_N x BLOCK_C products. With
    128 registers a thread, two programs fit on a multiprocessor of an A100, H100 or H200; rows of more than 1,024
    channels need more.
    """
    row = triton.next_power_of_2(channels)
    blocks = {"BLOCK_ROW": row, "BLOCK_E": 1024, "BLOCK_N": 16, "BLOCK_C": min(row, 128)}
    return blocks | {"num_warps": 8, "maxnreg": 128 if row <= 1024 else None}


def merge_graphs_triton(
    sums: Tensor, pairs: Tensor, row_starts: Tensor, edge_starts: Tensor, thresholds: Tensor, *,
    most_edges: int, many: int = 64, round_cost: int = 32, **blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Merge the regions of B graphs in one launch; see `merge_region_graphs` for the contract.

    Args:
        sums: concatenated region features of the graphs, contiguous float32 [N, C]; overwritten.
        pairs: distinct adjacent pairs in each graph's indices, int32 [E] of low << 16 | high; overwritten.
        row_starts: first row of each graph, and N, int64 [B + 1].
        edge_starts: first edge of each graph, and E, int64 [B + 1].
        thresholds: strictly decreasing, float32 [T].
        most_edges: largest number of edges of a graph.
        many: least number of edges of a region with bounds; affects speed only, as do the next two.
        round_cost: edges measured in the time of one round of replacing bounds: a region whose bounds cost more than
            its edges has none until it has twice as many edges.
        blocks: overrides of `launch_config`; at least one edge per thread, as threads must not share scratch memory.

    Returns:
        Merges of graph b from row_starts[b] on, int32 [N] of low << 16 | high; their similarities, float32 [N];
        and the number of merges of each graph down to each threshold, int32 [B, T].

    Raises:
        ValueError: if a block of edges is smaller than the program.
    """
    n_rows, channels = sums.shape
    n_graphs = len(row_starts) - 1
    config = launch_config(channels) | blocks
    if config["BLOCK_E"] < 32 * config["num_warps"]:
        block_e, num_warps = config["BLOCK_E"], config["num_warps"]
        raise ValueError(f"BLOCK_E must be at least 32 times num_warps, not {block_e} for {num_warps}")
    tile = {"C": channels, **{name: config[name] for name in ("BLOCK_N", "BLOCK_C", "num_warps")}}
    norms = sums.new_empty(n_rows, dtype=torch.float64)
    keys, listed = torch.empty_like(pairs, dtype=torch.float32), torch.empty_like(pairs)
    degrees, merged = pairs.new_zeros(n_rows), pairs.new_empty(n_rows)
    marks = torch.full_like(merged, -1)
    similarities = sums.new_empty(n_rows)
    counts = pairs.new_empty((n_graphs, len(thresholds)))
    if n_graphs == 0:
        return merged, similarities, counts
    with torch.cuda.device_of(sums):
        _norms_kernel[(triton.cdiv(n_rows, config["BLOCK_N"]),)](sums, norms, n_rows, **tile)
        if most_edges:
            n_blocks = triton.cdiv(most_edges, config["BLOCK_N"])
            _measure_kernel[(n_blocks * n_graphs,)](sums, norms, pairs, keys, row_starts, edge_starts, n_blocks, **tile)
        _merge_kernel[(n_graphs,)](
            sums, norms, degrees, marks, merged, similarities, pairs, keys, listed,
            row_starts, edge_starts, thresholds, counts, len(thresholds), many, round_cost, C=channels, **config,
        )  # fmt: skip
    return merged, similarities, counts
