"""Patch features of a backbone that `sohes pretrain` made: the package's own (`bundled`), a run's folder or a file.

From RGB images to one vector a patch of 4 pixels: the ViT's patch tokens, centered over the image, of unit length, beside the histograms of
`color_texture`. A small ViT sees what belongs together, the histograms where it ends; the cosine of the joined vectors is the
weighted mean of both cosines. Which layer, how large the ViT sees the image and the weight were chosen by measurement.

Source: tokens of a self-distilled ViT as features, Caron et al. 2021; that color joins them is ours.
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


_FULL_LENGTH = 0.25  # of the length of a normalized token: one that differs less from the image's mean counts less
_FULL_CONTRAST = (
    0.1  # deviation of the normalized pixels (5 gray levels): in an image of less, tokens tell places, not content
)


class DistilledVit:
    """Features of a backbone made by `sohes pretrain`; see the module.

    Args:
        source: `bundled`, a run's folder, or a backbone file of one.
        color_share: share of the histograms in the cosine, in [0, 1].
        vit_scale: side of the image that the ViT sees, over that of the images given.
        device: a torch device.
        precision: "bf16" runs the ViT under autocast.

    Attributes:
        name: `bundled`, or `pretrained` for any other, which its hash tells apart.
        vit: the timm model, in eval mode, on the device.
        patch_size: side of a patch of the result in pixels, that of the histograms.
        channels: C, the number of features of a patch.
        thresholds: the default merging thresholds for these features.
        identity: name, kind of weights and SHA-256 of their file.

    Raises:
        UsageError: if there is no such folder or file, or the device does not exist.
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
        """Describe every patch of a batch of images.

        Args:
            images: RGB, uint8 [B, H, W, 3], H and W multiples of `patch_size`.

        Returns:
            Features, float32 [B, C, h, w], h = H / 4 and w = W / 4; of unit length or a little shorter between unlike tokens.
        """
        colors = self._histograms.extract(images)
        with torch.inference_mode():
            tokens = self._tokens(torch.from_numpy(np.array(images, order="C")).to(self.device))
            deep = functional.interpolate(tokens, colors.shape[2:], mode="bilinear", align_corners=False).cpu().numpy()
        shares = np.sqrt([1 - self.color_share, self.color_share]).astype(np.float32)
        joined = np.concatenate([deep * shares[0], colors * shares[1]], axis=1)
        return np.ascontiguousarray(joined, dtype=np.float32)

    def _tokens(self, images: Tensor) -> Tensor:
        """Centered patch tokens of images [B, H, W, 3] at the ViT's own size, [B, C, h, w]."""
        pixels = (images.permute(0, 3, 1, 2).float() - self._mean) / self._std
        rows, columns = (max(1, round(side * self.vit_scale / self._vit_patch)) for side in pixels.shape[2:])
        size = (rows * self._vit_patch, columns * self._vit_patch)
        pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            tokens = self.vit.forward_features(pixels)[:, self.vit.num_prefix_tokens :].float()
        contrast = (pixels.std((2, 3), correction=0).amax(1) / _FULL_CONTRAST).clamp(max=1)
        return (_centered(tokens) * contrast[:, None, None]).mT.reshape(len(tokens), -1, rows, columns)


def _centered(tokens: Tensor) -> Tensor:
    """Tokens [B, P, C] less their image's mean, of unit length, or shorter where they hardly differ from it."""
    tokens = tokens - tokens.mean(1, keepdim=True)
    norms = tokens.norm(dim=-1, keepdim=True)
    shares = (norms / (_FULL_LENGTH * tokens.shape[-1] ** 0.5)).clamp(max=1)
    centered: Tensor = tokens * (shares**2 / norms.clamp(min=1e-12))
    return centered
