"""Step 0, features: an image -> one feature vector a patch, from an embedded descriptor, a backbone of `sohes pretrain` or a timm ViT.

Source: Cao et al. 2024 start from a frozen DINO ViT; `color-texture` is ours and needs no training and no download.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import cv2
import numpy as np
from scipy import sparse

from sohes_cli.errors import UsageError, nearest
from sohes_cli.explore.superpixels import patch_units
from sohes_cli.vit.bundled import BUNDLED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.explore.config import FeaturesConfig
    from sohes_cli.explore.distilled import DistilledVit
    from sohes_cli.explore.vit import VitBackbone

__all__ = ["EMBEDDED", "Backbone", "build_backbone", "patch_features", "unit_sums"]

EMBEDDED = ("color-texture",)
"""Backbones that are part of the package and need no weights."""


class Backbone(Protocol):
    """What the steps need of a feature extractor; `ColorTexture`, `DistilledVit` and `VitBackbone` are the kinds."""

    @property
    def name(self) -> str:
        """The name it is chosen by."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        ...

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Default merging thresholds for the cosine of its features."""
        ...

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`."""
        ...

    @property
    def identity(self) -> dict[str, str]:
        """Name and origin of the weights, for the manifest."""
        ...

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB images, uint8 [B, H, W, 3], to patch features, float32 [B, C, h, w]."""
        ...


def build_backbone(config: FeaturesConfig, device: str) -> Backbone:
    """Make the backbone that the settings name.

    Args:
        config: its name, weights and precision.
        device: a torch device, or `auto`: a GPU if there is one. Embedded descriptors always run on the CPU.

    Raises:
        UsageError: if the name or the device is unknown.
        WeightsError: if the weights cannot be had or do not fit.
    """
    if config.backbone in EMBEDDED:
        if config.weights:
            raise UsageError(
                f"--weights belongs to a ViT, but --backbone {config.backbone} has no weights.",
                "Leave one of them out.",
            )
        from sohes_cli.explore.color_texture import ColorTexture

        return ColorTexture()
    if _is_pretrained(config.backbone):
        return _build_distilled(config, device)
    if nearest(config.backbone, (*EMBEDDED, BUNDLED)):
        raise UsageError(f"--backbone {config.backbone!r} is unknown.{nearest(config.backbone, (*EMBEDDED, BUNDLED))}")
    return _build_vit(config, device)


def _is_pretrained(name: str) -> bool:
    """Whether a name means a backbone of `sohes pretrain`: the bundled one, or a path, which no name of timm's is."""
    return name == BUNDLED or "/" in name or name.endswith(".safetensors") or Path(name).is_dir()


def _build_distilled(config: FeaturesConfig, device: str) -> DistilledVit:
    from sohes_cli.explore.distilled import DistilledVit

    if config.weights:
        raise UsageError(
            f"--weights belongs to a ViT of timm, but --backbone {config.backbone} has its own.",
            "Leave one of them out.",
        )
    device, precision = _placed(config, device)
    return DistilledVit(config.backbone, config.color_share, config.vit_scale, device=device, precision=precision)


def _placed(config: FeaturesConfig, device: str) -> tuple[str, Literal["fp32", "bf16"]]:
    """The device and the precision that `auto` means."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device.startswith("cuda")
    return device, "bf16" if config.precision == "bf16" or (config.precision == "auto" and on_gpu) else "fp32"


def _build_vit(config: FeaturesConfig, device: str) -> VitBackbone:
    from sohes_cli.explore.vit import VitBackbone

    device, precision = _placed(config, device)
    weights: Path | Literal["random"] | None = Path(config.weights) if config.weights else None
    if config.weights == "random":
        weights = "random"
    return VitBackbone(config.backbone, weights=weights, device=device, precision=precision)


def patch_features(backbone: Backbone, pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.float32]:
    """Extract the features of one image or crop.

    Args:
        backbone: the feature extractor.
        pixels: RGB, uint8 [H, W, 3].
        image_size: square root of the number of pixels to which the image is resized; its aspect is kept up to the patch size.

    Returns:
        Patch features, float32 [C, h, w].
    """
    height, width = pixels.shape[:2]
    scale = image_size / (height * width) ** 0.5
    rows = max(1, round(height * scale / backbone.patch_size))
    columns = max(1, round(width * scale / backbone.patch_size))
    size = (columns * backbone.patch_size, rows * backbone.patch_size)
    shrinks = size[0] * size[1] < height * width
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    features: NDArray[np.float32] = backbone.extract(np.asarray(resized[None], dtype=np.uint8))[0]
    return features


def unit_sums(features: NDArray[np.float32], units: NDArray[np.int32], n_units: int) -> NDArray[np.float32]:
    """Sum the features of the patches under each unit, each patch weighted by the pixels it shares with the unit.

    Args:
        features: patch features, float32 [C, h, w].
        units: the unit of each pixel, int32 [H, W].
        n_units: R.

    Returns:
        Sums in units of pixels, float32 [R, C].
    """
    channels, rows, columns = features.shape
    height, width = units.shape
    patches = patch_units(height, width, rows, columns)
    shared = sparse.coo_matrix(
        (np.ones(units.size), (units.ravel(), patches.ravel())), shape=(n_units, rows * columns)
    ).tocsr()
    sums: NDArray[np.float32] = (shared @ features.reshape(channels, -1).T.astype(np.float64)).astype(np.float32)
    return sums
