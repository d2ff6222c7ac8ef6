"""Step 1, features: an image -> one feature vector per patch.

Backbones are an embedded descriptor, a backbone of `sohes pretrain`, or a frozen timm ViT.

Source: Cao et al. 2024 use a frozen DINO ViT; `color-texture` is ours and needs neither training nor download.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import cv2
import numpy as np
from scipy import sparse

from sohes_cli.explore.backbones import EMBEDDED, check_backbone, is_pretrained
from sohes_cli.explore.superpixels import patch_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.explore.config import FeaturesConfig

__all__ = ["EMBEDDED", "Backbone", "build_backbone", "patch_features", "unit_sums"]


class Backbone(Protocol):
    """Feature extractor; implemented by `ColorTexture`, `DistilledVit` and `VitBackbone`."""

    @property
    def name(self) -> str:
        """Name in the settings."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Default merging thresholds for the cosine of the features."""

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`."""

    @property
    def identity(self) -> dict[str, str]:
        """Name and origin of the weights, for the manifest."""

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute patch features, float32 [B, C, h, w], of RGB images, uint8 [B, H, W, 3]."""


def build_backbone(config: FeaturesConfig, device: str) -> Backbone:
    """Build the backbone of the settings.

    Args:
        config: name, weights and precision.
        device: torch device, or `auto` for a GPU if available. Embedded descriptors always run on the CPU.

    Raises:
        UsageError: if the name or the device is unknown.
        WeightsError: if the weights are unavailable or do not fit.
    """
    check_backbone(config)
    name = config.backbone
    if name in EMBEDDED:
        from sohes_cli.explore.color_texture import ColorTexture

        return ColorTexture()
    if is_pretrained(name):
        from sohes_cli.explore.distilled import DistilledVit

        device, precision = _resolve(config, device)
        return DistilledVit(name, config.color_share, config.vit_scale, device=device, precision=precision)
    from sohes_cli.explore.vit import VitBackbone

    device, precision = _resolve(config, device)
    weights: Path | Literal["random"] | None = Path(config.weights) if config.weights else None
    if config.weights == "random":
        weights = "random"
    return VitBackbone(name, weights=weights, device=device, precision=precision)


def patch_features(backbone: Backbone, pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.float32]:
    """Compute the patch features of one image or crop, float32 [C, h, w].

    Args:
        backbone: feature extractor.
        pixels: RGB, uint8 [H, W, 3].
        image_size: square root of the pixel count after resizing; the aspect is kept up to rounding to patches.
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
    """Sum patch features over the pixels of each unit, float32 [R, C].

    Args:
        features: patch features, float32 [C, h, w].
        units: unit of each pixel, int32 [H, W].
        n_units: R.
    """
    channels, rows, columns = features.shape
    height, width = units.shape
    patches = patch_units(height, width, rows, columns)
    pairs = np.ones(units.size), (units.ravel(), patches.ravel())
    shared = sparse.coo_matrix(pairs, shape=(n_units, rows * columns)).tocsr()  # pixels of each unit in each patch
    sums: NDArray[np.float32] = (shared @ features.reshape(channels, -1).T.astype(np.float64)).astype(np.float32)
    return sums


def _resolve(config: FeaturesConfig, device: str) -> tuple[str, Literal["fp32", "bf16"]]:
    """Resolve `auto` to a device and a precision."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device.startswith("cuda")
    return device, "bf16" if config.precision == "bf16" or (config.precision == "auto" and on_gpu) else "fp32"
