"""Patch features of a frozen timm ViT: the keys of its last attention layer, on the patch grid of an image.

From RGB images to one vector per patch, the input of the merging step. SOHES starts from a frozen, self-supervised DINO ViT (Cao et al.
2024, self-exploration); that the features are the last layer's keys, before any attention of that layer, is HASSOD's reading of
the same step (same first author). Position embeddings are interpolated to the grid, so any size that the patches tile is right.
The last block is entered no further than its key projection, and no N x N attention is held anywhere.
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
"""Merging thresholds for ViT keys: UnSAM's list, modelled on SOHES, whose paper names no values."""


class VitBackbone:
    """A frozen timm ViT that turns a batch of images of one size into raw keys of its last block.

    Args:
        name: a timm name with or without tag, such as `vit_base_patch8_224.dino`: a VisionTransformer (DINO, DINOv2 with and without
            registers, DeiT, ...) or an Eva (DINOv3, EVA-02). The tag also sets the mean and deviation of the pixels, so a file of
            DINO weights belongs to a name that ends in `.dino`.
        weights: a local file; None for timm's pretrained weights from the hub's cache, downloaded if they are not there; or
            "random", the same random weights at each call.
        device: a torch device.
        precision: "bf16" runs the blocks under autocast; tokens are added up, and the keys computed, in fp32 all the same.

    Attributes:
        name: as given.
        model: the timm model, in eval mode, on `device`.
        patch_size: side of a patch in pixels; images must be multiples of it.
        channels: C, the number of features of a patch.
        thresholds: the default merging thresholds for these features.
        identity: name, kind of weights (hub, file or random) and their SHA-256 (of the file, else of the tensors).

    Raises:
        UsageError: if timm has no model of that name, it is not such a ViT, or the device or the file does not exist.
        WeightsError: if the weights cannot be had, cannot be read or belong to another model.
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
        """Compute the last block's keys for every patch.

        Keys are raw: not normalized, before any key norm of the attention and, for DINOv3 and EVA-02, before the rotary position
        embedding; the heads are concatenated, and class and register tokens left out. On the CPU an image alone and in a batch
        differ by fp32 rounding only (matrix products of another size may add in another order).

        Args:
            images: RGB, uint8 [B, H, W, 3]; H and W positive multiples of `patch_size`.

        Returns:
            Keys, float32 [B, C, h, w], contiguous, with h = H / patch_size and w = W / patch_size.

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
            # outside autocast: in fp32 this product costs little, and its result is not rounded to 8 bits
            keys = functional.linear(
                tokens[:, -h * w :].float(), *_key_projection(self.model.blocks[-1].attn)
            )  # [B, h*w, C]
            result: NDArray[np.float32] = keys.transpose(1, 2).contiguous().cpu().numpy()
        return result.reshape(len(images), self.channels, h, w)

    def _grid(self, images: NDArray[np.uint8]) -> tuple[int, int]:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
        (h, rest_y), (w, rest_x) = (divmod(side, self.patch_size) for side in images.shape[1:3])
        if rest_y or rest_x or not h or not w:
            raise ValueError(
                f"height and width must be positive multiples of {self.patch_size}, not {list(images.shape[1:3])}"
            )
        return h, w

    def _upload(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(np.array(images, order="C"))  # a copy: the caller's array may be read-only
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True)


def _last_block_input(model: Any, pixels: Tensor) -> Tensor:
    """The normalized tokens [B, P + h*w, C] that enter the last block's attention, P prefix tokens first."""
    x = model.patch_embed(pixels)
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)
        x = model.norm_pre(x)
        for depth, block in enumerate(model.blocks[:-1]):
            x = block(
                x, rope=rope[depth] if model.rope_mixed and rope is not None else rope
            )  # mixed: one embedding a block
    else:
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
        x = model.blocks[:-1](x)
    tokens: Tensor = model.blocks[-1].norm1(x)
    return tokens


def _key_projection(attention: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [C, D] and bias [C] of the keys alone; Eva's fused projection keeps its bias apart, and that of the keys is zero."""
    if getattr(attention, "k_proj", None) is not None:
        return attention.k_proj.weight, attention.k_proj.bias
    weight, bias = attention.qkv.weight, attention.qkv.bias
    rows = slice(len(weight) // 3, 2 * len(weight) // 3)
    return weight[rows], None if bias is None else bias[rows]
