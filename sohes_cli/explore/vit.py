"""Patch features of a frozen timm ViT: the keys of its last attention layer.

Position embeddings are interpolated, so any size that is a multiple of the patch is valid. The last block is evaluated
only up to its key projection, and no N x N attention matrix is held.

Source: frozen, self-supervised DINO ViT, Cao et al. 2024, self-exploration; keys of the last layer as in HASSOD (same
first author).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from timm.models.eva import Eva
from torch import Tensor
from torch.nn import functional

from sohes_cli.runs.devices import torch_device
from sohes_cli.vit.published import check_name, published_vit

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["VIT_THRESHOLDS", "VitBackbone"]

VIT_THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Merging thresholds for ViT keys: the list of UnSAM, which follows SOHES; the paper names no values."""


class VitBackbone:
    """Raw keys of the last block of a frozen timm ViT, a `Backbone`.

    Args:
        name: timm name, with or without tag, of a VisionTransformer (DINO, DINOv2 with or without registers, DeiT, ...)
            or an Eva (DINOv3, EVA-02). The tag also selects the pixels' mean and deviation, so DINO weights from a file
            need a name that ends in `.dino`.
        weights: a local file; None for timm's pretrained weights from the hub or its cache; "random" for random ones,
            always the same.
        device: torch device.
        precision: "bf16" runs the blocks under autocast; the residual stream and the keys stay in fp32.

    Attributes:
        model: timm model, in eval mode, on `device`.
        patch_size: side of a patch in pixels; image sides must be multiples of it.
        channels: features per patch, C.
        identity: name, origin of the weights (hub, file or random) and their SHA-256 (of the file, else of the
            tensors).

    Raises:
        UsageError: if timm has no such model, it is not a plain ViT, or the device or the file does not exist.
        WeightsError: if the weights are unavailable, unreadable or those of another model.
    """

    thresholds: tuple[float, ...] = VIT_THRESHOLDS

    def __init__(
        self,
        name: str,
        *,
        weights: Path | Literal["random"] | None = None,
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self.name = name
        self.precision = precision
        check_name(name)
        self.device = torch_device(device)
        self.model, kind, sha256 = published_vit(name, weights)
        self.identity = {"name": name, "weights": kind, "sha256": sha256}
        self.model.to(self.device).eval().requires_grad_(False)
        self.patch_size = int(self.model.patch_embed.patch_size[0])
        self.channels = int(_key_projection(self.model.blocks[-1].attn)[0].shape[0])
        self._mean, self._std = (
            255 * torch.tensor(self.model.pretrained_cfg[k], device=self.device).view(1, -1, 1, 1)
            for k in ("mean", "std")
        )

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the last block's keys of all patches.

        Keys are raw: before the attention's key norm and, in Eva, before the rotary position embedding; heads are
        concatenated, class and register tokens dropped. On the CPU, batching changes them by fp32 rounding only.

        Args:
            images: RGB, uint8 [B, H, W, 3]; H and W positive multiples of `patch_size`.

        Returns:
            Keys, float32 [B, C, h, w], contiguous, h = H / patch_size and w = W / patch_size.

        Raises:
            ValueError: if the shape or type of `images` is another.
        """
        h, w = self._grid(images)
        if not len(images):
            return np.empty((0, self.channels, h, w), np.float32)
        with torch.inference_mode():
            pixels = (self._upload(images).permute(0, 3, 1, 2).float() - self._mean) / self._std  # [B, 3, H, W]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                tokens = _last_block_input(self.model, pixels)
            # outside of autocast: this product is cheap in fp32, and bf16 would round the keys to 8 bits
            projection = _key_projection(self.model.blocks[-1].attn)
            keys = functional.linear(tokens[:, -h * w :].float(), *projection)  # [B, h*w, C]
            result: NDArray[np.float32] = keys.transpose(1, 2).contiguous().cpu().numpy()
        return result.reshape(len(images), self.channels, h, w)

    def _grid(self, images: NDArray[np.uint8]) -> tuple[int, int]:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
        (h, rest_y), (w, rest_x) = (divmod(side, self.patch_size) for side in images.shape[1:3])
        if rest_y or rest_x or not h or not w:
            size = list(images.shape[1:3])
            raise ValueError(f"height and width must be positive multiples of {self.patch_size}, not {size}")
        return h, w

    def _upload(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(np.array(images, order="C"))  # a copy: the caller's array may be read-only
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True)


def _last_block_input(model: Any, pixels: Tensor) -> Tensor:
    """Compute the input of the last block's attention, normalized tokens [B, P + h*w, C], P prefix tokens first."""
    x = model.patch_embed(pixels)
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)
        x = model.norm_pre(x)
        for depth, block in enumerate(model.blocks[:-1]):
            # "mixed" models have one rotary embedding per block
            x = block(x, rope=rope[depth] if model.rope_mixed and rope is not None else rope)
    else:
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
        x = model.blocks[:-1](x)
    tokens: Tensor = model.blocks[-1].norm1(x)
    return tokens


def _key_projection(attention: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight [C, D] and bias [C] of the keys; Eva's fused projection has no key bias."""
    if getattr(attention, "k_proj", None) is not None:
        return attention.k_proj.weight, attention.k_proj.bias
    weight, bias = attention.qkv.weight, attention.qkv.bias
    rows = slice(len(weight) // 3, 2 * len(weight) // 3)
    return weight[rows], None if bias is None else bias[rows]
