"""Settings of `sohes explore`: one group for each step of the method, and two presets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from sohes_cli.settings import PRECISIONS, Group, count, resolve, setting, share

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
"""`default` needs no download; `paper` is the setting of the paper (DINO ViT-B/8, patches, thresholds)."""


@dataclass(frozen=True)
class FeaturesConfig(Group, name="features"):
    """Input and weights of the backbone."""

    backbone: str = setting(
        "color-texture",
        "`color-texture` (embedded), a folder or file of `sohes pretrain`, or the timm name of a ViT.",
        rule=bool,
        allowed="the name of a backbone",
    )
    weights: str = setting("", "Local weights file, or `random`; empty for the embedded ones or timm's cache.")
    image_size: int = setting(
        480, "Square root of the pixels of the backbone's input.", minimum=16, maximum=8192, unit="pixels"
    )
    precision: str = setting(
        "auto", "auto: bf16 on a GPU, fp32 on a CPU.", choices=PRECISIONS, allowed="auto, fp32 or bf16"
    )
    color_share: float = share(0.7, "Share of `color-texture` in the cosine of a backbone of `sohes pretrain`.")
    vit_scale: float = setting(0.6667, "Side of its ViT's input over `image_size`.", minimum=0.1, maximum=4)


@dataclass(frozen=True)
class UnitsConfig(Group, name="units"):
    """Units to merge, and the working size of masks, which are written at the size of the photograph."""

    kind: str = setting(
        "superpixels",
        "`superpixels` (edges of the photograph) or `patches` (the paper's).",
        choices=("superpixels", "patches"),
        allowed="superpixels or patches",
    )
    working_size: int = setting(
        640, "Square root of the pixels of a larger photograph.", minimum=16, maximum=8192, unit="pixels"
    )
    superpixel_scale: float = setting(20.0, "Scale of superpixels; larger gives larger ones.", above=0)
    superpixel_area_px: int = count(20, "Area below which a superpixel joins a neighbor.")


@dataclass(frozen=True)
class MergingConfig(Group, name="merging"):
    """Affinities and thresholds of the agglomerative merging."""

    affinities: tuple[str, ...] = setting(
        ("boundaries", "both", "features"),
        "Hierarchies to pool: `features` (cosine, the paper's), `boundaries` (diffusion) and `both` (their product).",
        choices=("features", "boundaries", "both"),
        rule=lambda names: len(set(names)) == len(names) > 0,
        allowed="some of features, boundaries, both",
    )
    thresholds: tuple[float, ...] = setting(
        (),
        "Cosine similarities, strictly decreasing; empty for the defaults of the backbone and the affinity.",
        minimum=-1,
        maximum=1,
        rule=lambda values: all(a > b for a, b in pairwise(values)),
        allowed="similarities in [-1, 1], strictly decreasing",
    )
    boundary_weight: float = setting(3.0, "Beta, strength with which a boundary blocks diffusion.", minimum=0)
    diffusion_times: tuple[float, ...] = setting(
        (30.0, 300.0), "Times of the averaged heat kernels.", above=0, rule=bool, allowed="one or more times above 0"
    )
    eigenvectors: int = count(48, "Smoothest eigenvectors of the graph Laplacian.")
    feature_power: float = setting(2.0, "Exponent of the backbone's cosine in `both`.", above=0)


@dataclass(frozen=True)
class ReclusteringConfig(Group, name="reclustering"):
    """Second pass over small regions."""

    enabled: bool = setting(False, "Re-cluster small candidates.")
    max_area: float = share(0.01, "Share of the image below which a candidate is re-clustered.", above=0)
    context: float = setting(2.0, "Side of the square crop over the longer side of the box.", minimum=1, maximum=100)
    crop_size: int = setting(256, "Side of the resized crop.", minimum=32, maximum=4096, unit="pixels")
    min_inside: float = share(0.9, "Share of a local mask that must lie in its candidate.", above=0)
    max_crops: int = count(64, "Largest number of crops of an image, best-scoring candidates first.")


@dataclass(frozen=True)
class PoolingConfig(Group, name="pooling"):
    """Selection of masks among the candidates."""

    max_area: float = share(0.9, "Share of the image above which a candidate is dropped.", above=0)
    min_area_px: int = count(60, "Area, at working size or in a crop, below which it is dropped; 256 in the paper.")
    nms_iou: float = share(0.9, "IoU at which the worse-scoring of two masks is dropped.", above=0, noun="an IoU")
    max_masks: int = setting(475, "Largest number of masks of an image, best scores first.", minimum=1, maximum=10000)
    area_exponent: float = setting(
        0.6, "Exponent of the area share in score = survival x share ^ exponent.", minimum=0, maximum=4
    )


@dataclass(frozen=True)
class RefinementConfig(Group, name="refinement"):
    """Refinement of the masks' edges."""

    method: str = setting(
        "none",
        "`none`, `guided` (edge-aware filter), `superpixels` (snap to them), `crf` (dense mean field) or `cascadepsp`.",
        choices=("none", "guided", "superpixels", "crf", "cascadepsp"),
    )
    min_iou: float = share(0.5, "IoU with its refinement below which a mask is dropped.", noun="an IoU")
    fill_holes: bool = setting(True, "Fill holes of refined masks.")


@dataclass(frozen=True)
class HierarchyConfig(Group, name="hierarchy"):
    """Part-of relation between masks."""

    cover: float = share(0.9, "Share of the smaller mask that must lie in the larger one.", above=0.5)


@dataclass(frozen=True)
class ExploreConfig:
    """All settings that determine the labels of `sohes explore`, one group for each step."""

    features: FeaturesConfig = FeaturesConfig()
    units: UnitsConfig = UnitsConfig()
    merging: MergingConfig = MergingConfig()
    reclustering: ReclusteringConfig = ReclusteringConfig()
    pooling: PoolingConfig = PoolingConfig()
    refinement: RefinementConfig = RefinementConfig()
    hierarchy: HierarchyConfig = HierarchyConfig()


explore_config = partial(resolve, ExploreConfig, PRESETS)
"""Resolve the settings of `sohes explore` from `preset`, `file`, `assignments` and `flags`, as `resolve` does."""
