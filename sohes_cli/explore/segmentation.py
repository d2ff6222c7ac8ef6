"""One image or crop -> scored candidate masks: units, features, and a hierarchy of merges for each affinity.

The paper merges patches by the backbone's cosine alone (`units.kind = patches`, `merging.affinities = [features]`).
By default superpixels are merged three times: by the image's boundaries, by the backbone's features, and by both
together. The three hierarchies fail in different places, and their pool is better than each.
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
"""Default merging thresholds for the affinities `boundaries` and `both`: their cosines fill the range from 1 to 0."""


def candidate_masks(
    pixels: NDArray[np.uint8], backbone: Backbone, config: ExploreConfig, image_size: int, times: StepTimes
) -> tuple[MaskPool, NDArray[np.int32]]:
    """Cut one image or crop into candidate masks.

    Args:
        pixels: RGB, uint8 [H, W, 3].
        backbone: the feature extractor.
        config: settings of units, merging and pooling.
        image_size: see `patch_features`.
        times: the clock of the steps.

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
        pools = [
            merge_units(
                embeddings[affinity],
                graph.edges,
                config.merging.thresholds or default_thresholds(affinity, backbone),
                graph.areas_px,
                config.pooling.min_area_px,
            )
            for affinity in config.merging.affinities
        ]
    with times.step("pooling"):
        return _painted(pools, graph, config), graph.units


def default_thresholds(affinity: str, backbone: Backbone) -> tuple[float, ...]:
    """The merging thresholds of an affinity when the settings name none: the backbone's for its own cosine."""
    return backbone.thresholds if affinity == "features" else DIFFUSION_THRESHOLDS


def _units(pixels: NDArray[np.uint8], features: NDArray[np.float32] | None, config: ExploreConfig) -> UnitGraph:
    if features is not None and config.units.kind == "patches":
        units = patch_units(*pixels.shape[:2], *features.shape[1:])
        _, compact = np.unique(units, return_inverse=True)  # a grid finer than the pixels leaves numbers out
        units = compact.reshape(units.shape).astype(np.int32)
    else:
        units = superpixels(pixels, config.units.superpixel_scale, config.units.superpixel_area_px)
    diffuses = set(config.merging.affinities) != {"features"}
    strength = boundary_strength(pixels) if diffuses else np.zeros(pixels.shape[:2], dtype=np.float32)
    return unit_graph(units, strength)


def _embeddings(
    graph: UnitGraph, sums: NDArray[np.float32] | None, config: MergingConfig
) -> dict[str, NDArray[np.float32]]:
    """What the units are merged by for each affinity, summed over a unit's pixels, float32 [R, C]."""
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


def _painted(pools: list[Candidates], graph: UnitGraph, config: ExploreConfig) -> MaskPool:
    """The candidates that are large enough, painted and scored; of each hierarchy a few times as many as may be kept."""
    height, width = graph.units.shape
    members, scores = [], []
    for pool in pools:
        areas = pool.members @ graph.areas_px
        score = mask_scores(pool.survival, areas / (height * width), config.pooling.area_exponent)
        large = np.flatnonzero(
            (areas >= config.pooling.min_area_px) & (areas <= config.pooling.max_area * height * width)
        )
        best = large[np.argsort(-score[large], kind="stable")][: 2 * config.pooling.max_masks]
        members.append(pool.members[best])
        scores.append(score[best])
    return MaskPool(PackedMasks.from_units(np.concatenate(members), graph.units), np.concatenate(scores))
