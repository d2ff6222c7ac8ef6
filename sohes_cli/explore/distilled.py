"""Patch features of a backbone of `sohes pretrain`: centered tokens of its ViT, joined with `color-texture` histograms.

A small ViT groups what belongs together, and histograms locate its borders; the cosine of the joined vectors is the
weighted mean of both cosines. Layer, input size of the ViT and weight were chosen by measurement.

Source: tokens of a self-distilled ViT as features, Caron et al. 2021; the histograms are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sohes_cli.explore.color_texture import ColorTexture
from sohes_cli.runs.devices import torch_device
from sohes_cli.runs.files import file_sha256
from sohes_cli.vit import bundled
from sohes_cli.vit.pretrained import find_backbone, load_vit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DistilledVit"]

_FULL_LENGTH = 0.25  # share of a normalized token's length from which a deviation from the image's mean counts fully
_FULL_CONTRAST = 0.1  # deviation of normalized pixels (5 gray levels); below it, tokens encode position, not content


class DistilledVit:
    """Patch features of a backbone of `sohes pretrain`, a `Backbone`.

    Args:
        source: `bundled`, the folder of a run, or a backbone file.
        color_share: share of the histograms in the cosine, in [0, 1].
        vit_scale: side of the ViT's input relative to the images.
        device: torch device.
        precision: "bf16" runs the ViT under autocast.

    Attributes:
        name: `bundled` or `pretrained`; the hash in `identity` distinguishes the latter.
        vit: timm model, in eval mode, on the device.
        patch_size: side of a patch in pixels, as in the histograms.
        channels: features per patch, C.

    Raises:
        UsageError: if the folder, the file or the device does not exist.
        WeightsError: if the file is damaged or of another kind.
    """

    thresholds: tuple[float, ...] = tuple(round(0.98 - 0.02 * k, 2) for k in range(40))

    def __init__(
        self,
        source: str,
        color_share: float = 0.7,
        vit_scale: float = 2 / 3,
        *,
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        path = find_backbone(source)
        self.name = source if source == bundled.BUNDLED else "pretrained"
        self.precision = precision
        self.color_share, self.vit_scale = color_share, vit_scale
        self.device = torch_device(device)
        self.vit, description = load_vit(path)
        self.vit.to(self.device).eval().requires_grad_(False)
        self.identity = {"name": self.name, "weights": self.name, "sha256": file_sha256(path)}
        self._histograms = ColorTexture()
        self.patch_size = self._histograms.patch_size
        self.channels = int(self.vit.embed_dim) + self._histograms.channels
        self._vit_patch = int(self.vit.patch_embed.patch_size[0])
        self._mean, self._std = (
            255 * torch.tensor(description[k], device=self.device).view(1, -1, 1, 1) for k in ("mean", "std")
        )

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe all patches of RGB images, uint8 [B, H, W, 3], H and W multiples of `patch_size`.

        Returns:
            Features, float32 [B, C, H / 4, W / 4], of unit length, or shorter where tokens are interpolated.
        """
        colors = self._histograms.extract(images)
        with torch.inference_mode():
            tokens = self._tokens(torch.from_numpy(np.array(images, order="C")).to(self.device))
            deep = functional.interpolate(tokens, colors.shape[2:], mode="bilinear", align_corners=False).cpu().numpy()
        shares = np.sqrt([1 - self.color_share, self.color_share]).astype(np.float32)
        joined = np.concatenate([deep * shares[0], colors * shares[1]], axis=1)
        return np.ascontiguousarray(joined, dtype=np.float32)

    def _tokens(self, images: Tensor) -> Tensor:
        """Compute centered patch tokens of images [B, H, W, 3] at the ViT's input size, [B, C, h, w]."""
        pixels = (images.permute(0, 3, 1, 2).float() - self._mean) / self._std
        rows, columns = (max(1, round(side * self.vit_scale / self._vit_patch)) for side in pixels.shape[2:])
        size = (rows * self._vit_patch, columns * self._vit_patch)
        pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            tokens = self.vit.forward_features(pixels)[:, self.vit.num_prefix_tokens :].float()
        contrast = (pixels.std((2, 3), correction=0).amax(1) / _FULL_CONTRAST).clamp(max=1)
        return (_centered(tokens) * contrast[:, None, None]).mT.reshape(len(tokens), -1, rows, columns)


def _centered(tokens: Tensor) -> Tensor:
    """Subtract the image's mean from tokens [B, P, C] and normalize, to less than unit length close to the mean."""
    tokens = tokens - tokens.mean(1, keepdim=True)
    norms = tokens.norm(dim=-1, keepdim=True)
    shares = (norms / (_FULL_LENGTH * tokens.shape[-1] ** 0.5)).clamp(max=1)
    centered: Tensor = tokens * (shares**2 / norms.clamp(min=1e-12))
    return centered
