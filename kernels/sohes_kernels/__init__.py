"""Compute-heavy operations of SOHES, one folder per op: contract and dispatch, readable reference, fast backends.

Importing this package imports neither torch nor numba nor triton: a backend loads its dependencies when first called.
"""

from sohes_kernels.ancestor_loss import ancestor_loss, forest_intervals
from sohes_kernels.deformable_attention import deformable_attention
from sohes_kernels.mask_intersection import mask_areas, mask_intersections, pack_masks, unpack_masks
from sohes_kernels.region_merging import (
    RegionMerging,
    grid_edges,
    merge_region_graph,
    merge_region_graphs,
    merge_regions,
)
from sohes_kernels.run_intersection import RunMasks, run_intersections

__all__ = [
    "RegionMerging", "RunMasks", "ancestor_loss", "deformable_attention", "forest_intervals", "grid_edges",
    "mask_areas", "mask_intersections", "merge_region_graph", "merge_region_graphs", "merge_regions", "pack_masks",
    "run_intersections", "unpack_masks",
]  # fmt: skip
