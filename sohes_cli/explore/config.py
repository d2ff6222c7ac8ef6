"""The settings of `sohes explore`: one frozen dataclass, a group for each step of the method, and two presets."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from sohes_cli.settings import require, resolve

if typing.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "PRESETS",
    "ExploreConfig",
    "FeaturesConfig",
    "HierarchyConfig",
    "MergingConfig",
    "PoolingConfig",
    "ReclusteringConfig",
    "RefinementConfig",
    "UnitsConfig",
    "explore_config",
]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {
        "features": {"backbone": "vit_base_patch8_224.dino", "image_size": 480},
        "units": {"kind": "patches", "working_size": 480},
        "merging": {"affinities": ("features",), "thresholds": (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)},
        "reclustering": {"enabled": True},
        "pooling": {"min_area_px": 256, "max_masks": 1000},
        "refinement": {"method": "crf"},
    },
}
"""Named starting points: `default` needs no download; `paper` is the setting of the paper (DINO ViT-B/8, patches, thresholds)."""


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """What the backbone sees.

    Args:
        backbone: `color-texture` (embedded), a folder or file of `sohes pretrain`, or the timm name of a ViT.
        weights: a local weights file, or `random`; empty for the embedded ones or timm's cache.
        image_size: square root of the number of pixels given to the backbone; the aspect is kept.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU and fp32 on a CPU.
        color_share: of a backbone of `sohes pretrain`: the share of the histograms of `color-texture` in the cosine.
        vit_scale: of such a backbone: the side of the image that its ViT sees, over `image_size`.
    """

    backbone: str = "color-texture"
    weights: str = ""
    image_size: int = 480
    precision: str = "auto"
    color_share: float = 0.7
    vit_scale: float = 0.6667

    def __post_init__(self) -> None:
        require(bool(self.backbone), "features.backbone", self.backbone, "the name of a backbone")
        require(16 <= self.image_size <= 8192, "features.image_size", self.image_size, "pixels from 16 to 8192")
        require(self.precision in ("auto", "fp32", "bf16"), "features.precision", self.precision, "auto, fp32 or bf16")
        require(0 <= self.color_share <= 1, "features.color_share", self.color_share, "a share in [0, 1]")
        require(0.1 <= self.vit_scale <= 4, "features.vit_scale", self.vit_scale, "from 0.1 to 4")


@dataclasses.dataclass(frozen=True)
class UnitsConfig:
    """What is merged, and on what grid masks are made.

    Args:
        kind: `superpixels` (edges of the photograph) or `patches` (the paper's).
        working_size: square root of the number of pixels on which masks are made; larger photographs are reduced for it,
            and their masks written at full size.
        superpixel_scale: larger gives larger superpixels.
        superpixel_area_px: smaller superpixels are joined to a neighbor.
    """

    kind: str = "superpixels"
    working_size: int = 640
    superpixel_scale: float = 20.0
    superpixel_area_px: int = 20

    def __post_init__(self) -> None:
        require(self.kind in ("superpixels", "patches"), "units.kind", self.kind, "superpixels or patches")
        require(16 <= self.working_size <= 8192, "units.working_size", self.working_size, "pixels from 16 to 8192")
        require(0 < self.superpixel_scale < math.inf, "units.superpixel_scale", self.superpixel_scale, "above 0")
        require(self.superpixel_area_px >= 1, "units.superpixel_area_px", self.superpixel_area_px, "at least 1")


@dataclasses.dataclass(frozen=True)
class MergingConfig:
    """How units merge.

    Args:
        affinities: which hierarchies are built and pooled: `features` (the backbone's cosine, the paper's), `boundaries`
            (diffusion that boundaries block) and `both` (their product).
        thresholds: cosine similarities, strictly decreasing; empty for the defaults of the backbone and the affinity.
        boundary_weight: beta, how strongly a boundary blocks the diffusion.
        diffusion_times: the heat kernels of these times are averaged.
        eigenvectors: of the graph Laplacian, the smoothest.
        feature_power: sharpens the backbone's cosine in `both`.
    """

    affinities: tuple[str, ...] = ("boundaries", "both", "features")
    thresholds: tuple[float, ...] = ()
    boundary_weight: float = 3.0
    diffusion_times: tuple[float, ...] = (30.0, 300.0)
    eigenvectors: int = 48
    feature_power: float = 2.0

    def __post_init__(self) -> None:
        known = ("features", "boundaries", "both")
        distinct = len(set(self.affinities)) == len(self.affinities) > 0
        require(
            distinct and set(self.affinities) <= set(known),
            "merging.affinities",
            self.affinities,
            f"some of {', '.join(known)}",
        )
        decreasing = all(a > b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False))
        in_range = all(-1 <= t <= 1 for t in self.thresholds)
        require(
            decreasing and in_range,
            "merging.thresholds",
            self.thresholds,
            "similarities in [-1, 1], strictly decreasing",
        )
        require(0 <= self.boundary_weight < math.inf, "merging.boundary_weight", self.boundary_weight, "at least 0")
        positive = len(self.diffusion_times) > 0 and all(0 < t < math.inf for t in self.diffusion_times)
        require(positive, "merging.diffusion_times", self.diffusion_times, "one or more times above 0")
        require(self.eigenvectors >= 1, "merging.eigenvectors", self.eigenvectors, "at least 1")
        require(0 < self.feature_power < math.inf, "merging.feature_power", self.feature_power, "above 0")


@dataclasses.dataclass(frozen=True)
class ReclusteringConfig:
    """The second look at small regions.

    Args:
        enabled: whether it takes place.
        max_area: share of the image below which a candidate is looked at again.
        context: side of the square crop over the longer side of the candidate's box.
        crop_size: side to which a crop is resized, in pixels.
        min_inside: share of a local mask that must lie in its candidate.
        max_crops: at most this many crops an image, the best-scoring candidates first.
    """

    enabled: bool = False
    max_area: float = 0.01
    context: float = 2.0
    crop_size: int = 256
    min_inside: float = 0.9
    max_crops: int = 64

    def __post_init__(self) -> None:
        require(0 < self.max_area <= 1, "reclustering.max_area", self.max_area, "a share in (0, 1]")
        require(1 <= self.context <= 100, "reclustering.context", self.context, "from 1 to 100")
        require(32 <= self.crop_size <= 4096, "reclustering.crop_size", self.crop_size, "pixels from 32 to 4096")
        require(0 < self.min_inside <= 1, "reclustering.min_inside", self.min_inside, "a share in (0, 1]")
        require(self.max_crops >= 1, "reclustering.max_crops", self.max_crops, "at least 1")


@dataclasses.dataclass(frozen=True)
class PoolingConfig:
    """Which candidates become masks.

    Args:
        max_area: share of the image above which a candidate is dropped.
        min_area_px: pixels (at working size, in re-clustering those of the crop) below which it is dropped; the paper's
            4 patches of 8 pixels are 256.
        nms_iou: of two masks this alike, the worse-scoring one is dropped.
        max_masks: at most this many an image, the best-scoring ones.
        area_exponent: score = survival x (share of the image) ^ area_exponent.
    """

    max_area: float = 0.9
    min_area_px: int = 60
    nms_iou: float = 0.9
    max_masks: int = 475
    area_exponent: float = 0.6

    def __post_init__(self) -> None:
        require(0 < self.max_area <= 1, "pooling.max_area", self.max_area, "a share in (0, 1]")
        require(self.min_area_px >= 1, "pooling.min_area_px", self.min_area_px, "at least 1")
        require(0 < self.nms_iou <= 1, "pooling.nms_iou", self.nms_iou, "an IoU in (0, 1]")
        require(1 <= self.max_masks <= 10000, "pooling.max_masks", self.max_masks, "from 1 to 10000")
        require(0 <= self.area_exponent <= 4, "pooling.area_exponent", self.area_exponent, "from 0 to 4")


@dataclasses.dataclass(frozen=True)
class RefinementConfig:
    """What happens to the masks' edges.

    Args:
        method: `none`, `guided` (edge-aware filter), `superpixels` (snap to them), `crf` (dense mean field) or `cascadepsp`.
        min_iou: a mask that refinement changes more than this is dropped.
        fill_holes: whether holes of refined masks are filled.
    """

    method: str = "none"
    min_iou: float = 0.5
    fill_holes: bool = True

    def __post_init__(self) -> None:
        methods = ("none", "guided", "superpixels", "crf", "cascadepsp")
        require(self.method in methods, "refinement.method", self.method, f"one of {', '.join(methods)}")
        require(0 <= self.min_iou <= 1, "refinement.min_iou", self.min_iou, "an IoU in [0, 1]")


@dataclasses.dataclass(frozen=True)
class HierarchyConfig:
    """When a mask is part of another.

    Args:
        cover: share of the smaller mask that must lie in the larger one.
    """

    cover: float = 0.9

    def __post_init__(self) -> None:
        require(0.5 < self.cover <= 1, "hierarchy.cover", self.cover, "a share in (0.5, 1]")


@dataclasses.dataclass(frozen=True)
class ExploreConfig:
    """Everything that decides the labels of `sohes explore`; each group is one step of the method."""

    features: FeaturesConfig = FeaturesConfig()
    units: UnitsConfig = UnitsConfig()
    merging: MergingConfig = MergingConfig()
    reclustering: ReclusteringConfig = ReclusteringConfig()
    pooling: PoolingConfig = PoolingConfig()
    refinement: RefinementConfig = RefinementConfig()
    hierarchy: HierarchyConfig = HierarchyConfig()


def explore_config(
    preset: str = "default",
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> ExploreConfig:
    """Resolve the settings of `sohes explore`; see `resolve`."""
    return resolve(ExploreConfig, PRESETS, preset, file, assignments, flags)
