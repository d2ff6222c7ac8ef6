"""Segmentation of an image or crop: features -> units -> a hierarchy of merges per affinity -> scored candidates.

The paper merges patches by the backbone's cosine alone (`units.kind = patches`, `merging.affinities = [features]`). By
default, superpixels are merged three times: by the image's boundaries, by the backbone's features, and by both. The
three hierarchies fail in different places, and their pool is better than each.

Source: Cao et al. 2024, self-exploration; superpixels and the affinities `boundaries` and `both` are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sohes_cli.explore.boundaries import boundary_strength
from sohes_cli.explore.diffusion import diffusion_features, product_features
from sohes_cli.explore.features import Backbone, patch_features, unit_sums
from sohes_cli.explore.merging import Candidates, merge_units
from sohes_cli.explore.pooling import MaskPool, mask_scores
from sohes_cli.explore.superpixels import UnitGraph, patch_units, superpixels, unit_graph
from sohes_cli.masks.packed import PackedMasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.explore.config import ExploreConfig, MergingConfig
    from sohes_cli.runs.step_times import StepTimes

__all__ = ["DIFFUSION_THRESHOLDS", "candidate_masks", "default_thresholds"]

DIFFUSION_THRESHOLDS = (0.999, 0.998, 0.997, 0.996, 0.995, 0.993, *(round(0.99 - 0.01 * k, 2) for k in range(99)))
"""Default merging thresholds for the affinities `boundaries` and `both`, whose cosines range from 1 to 0."""


def candidate_masks(
    pixels: NDArray[np.uint8], backbone: Backbone, config: ExploreConfig, image_size: int, times: StepTimes
) -> tuple[MaskPool, NDArray[np.int32]]:
    """Segment one image or crop into candidate masks.

    Args:
        pixels: RGB, uint8 [H, W, 3].
        backbone: feature extractor.
        config: settings of units, merging and pooling.
        image_size: see `patch_features`.
        times: accumulates the seconds of each step.

    Returns:
        The candidates, unordered and with near-duplicates, and the unit map, int32 [H, W].
    """
    with times.step("features"):
        needed = config.units.kind == "patches" or set(config.merging.affinities) != {"boundaries"}
        features = patch_features(backbone, pixels, image_size) if needed else None
    with times.step("units"):
        graph = _units(pixels, features, config)
        sums = None if features is None else unit_sums(features, graph.units, len(graph))
    with times.step("merging"):
        embeddings = _embeddings(graph, sums, config.merging)
        pools, min_area_px = [], config.pooling.min_area_px
        for affinity in config.merging.affinities:
            thresholds = config.merging.thresholds or default_thresholds(affinity, backbone)
            pools.append(merge_units(embeddings[affinity], graph.edges, thresholds, graph.areas_px, min_area_px))
    with times.step("pooling"):
        return _paint(pools, graph, config), graph.units


def default_thresholds(affinity: str, backbone: Backbone) -> tuple[float, ...]:
    """Return the default merging thresholds of an affinity, those of the backbone for its features."""
    return backbone.thresholds if affinity == "features" else DIFFUSION_THRESHOLDS


def _units(pixels: NDArray[np.uint8], features: NDArray[np.float32] | None, config: ExploreConfig) -> UnitGraph:
    """Build the graph of patches or superpixels, with boundary strength if an affinity uses it."""
    if features is not None and config.units.kind == "patches":
        units = patch_units(*pixels.shape[:2], *features.shape[1:])
        _, compact = np.unique(units, return_inverse=True)  # a grid finer than the pixels skips ids
        units = compact.reshape(units.shape).astype(np.int32)
    else:
        units = superpixels(pixels, config.units.superpixel_scale, config.units.superpixel_area_px)
    diffuses = set(config.merging.affinities) != {"features"}
    strength = boundary_strength(pixels) if diffuses else np.zeros(pixels.shape[:2], dtype=np.float32)
    return unit_graph(units, strength)


def _embeddings(
    graph: UnitGraph, sums: NDArray[np.float32] | None, config: MergingConfig
) -> dict[str, NDArray[np.float32]]:
    """Compute the features of each affinity, summed over each unit's pixels, float32 [R, C]."""
    embeddings = {}
    if sums is not None:
        embeddings["features"] = sums
    if set(config.affinities) != {"features"}:
        diffusion = diffusion_features(graph, config.boundary_weight, config.diffusion_times, config.eigenvectors)
        areas_px = graph.areas_px[:, None].astype(np.float32)
        embeddings["boundaries"] = diffusion * areas_px
        if sums is not None and "both" in config.affinities:
            embeddings["both"] = product_features(sums, diffusion, config.feature_power) * areas_px
    return embeddings


def _paint(pools: list[Candidates], graph: UnitGraph, config: ExploreConfig) -> MaskPool:
    """Score the candidates within the limits of area, and paint the best `2 * max_masks` of each hierarchy."""
    settings, n_pixels = config.pooling, graph.units.size
    members, scores = [], []
    for pool in pools:
        areas = pool.members @ graph.areas_px
        score = mask_scores(pool.survival, areas / n_pixels, settings.area_exponent)
        fits = np.flatnonzero((areas >= settings.min_area_px) & (areas <= settings.max_area * n_pixels))
        best = fits[np.argsort(-score[fits], kind="stable")][: 2 * settings.max_masks]
        members.append(pool.members[best])
        scores.append(score[best])
    return MaskPool(PackedMasks.from_units(np.concatenate(members), graph.units), np.concatenate(scores))
