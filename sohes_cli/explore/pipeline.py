"""Self-exploration of one photograph: pixels -> a record of masks and their forest, in the steps of the method.

    1 features -> units -> 2 merging -> 4 pooling -> (3 re-clustering -> 4) -> (5 refinement -> 4) -> 6 hierarchy ->
    record

Source: Cao et al. 2024, section on self-exploration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sohes_cli.explore.hierarchy import build_forest
from sohes_cli.explore.pooling import MaskPool, pool_masks
from sohes_cli.explore.reclustering import recluster
from sohes_cli.explore.refinement import refine
from sohes_cli.explore.segmentation import candidate_masks
from sohes_cli.labels.records import label_record
from sohes_cli.runs.step_times import StepTimes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sohes_cli.explore.config import ExploreConfig
    from sohes_cli.explore.features import Backbone
    from sohes_cli.images.reading import Photograph
    from sohes_cli.structures import LabelRecord

__all__ = ["explore_photograph"]


def explore_photograph(
    photo: Photograph, backbone: Backbone, config: ExploreConfig, times: StepTimes | None = None
) -> LabelRecord:
    """Find the masks of one photograph and their hierarchy.

    Args:
        photo: photograph at working size.
        backbone: feature extractor.
        config: all settings.
        times: accumulates the seconds of each step.

    Returns:
        The record: masks at the photograph's full size, best score first, ids from 1.
    """
    times = times or StepTimes()
    candidates, units = candidate_masks(photo.pixels, backbone, config, config.features.image_size, times)
    with times.step("pooling"):
        pool = pool_masks(candidates, config.pooling)
    if config.reclustering.enabled:
        with times.step("re-clustering"):
            local = recluster(pool, photo.pixels, config, lambda crop: _segment_crop(crop, backbone, config))
            pool = pool_masks(local, config.pooling)
    if config.refinement.method != "none":
        with times.step("refinement"):
            superpixels = units if config.units.kind == "superpixels" else None
            masks, survivors = refine(pool.masks, photo.pixels, config.refinement, superpixels)
            pool = pool_masks(MaskPool(masks, pool.scores[survivors]), config.pooling)
    with times.step("hierarchy"):
        forest = build_forest(pool.masks, config.hierarchy.cover)
    with times.step("encoding"):
        return label_record(photo.name, photo.height, photo.width, pool.masks, pool.scores, forest)


def _segment_crop(crop: NDArray[np.uint8], backbone: Backbone, config: ExploreConfig) -> MaskPool:
    """Find the distinct masks of one enlarged crop, uint8 [S, S, 3]."""
    candidates, _ = candidate_masks(crop, backbone, config, config.reclustering.crop_size, StepTimes())
    return pool_masks(candidates, config.pooling)
