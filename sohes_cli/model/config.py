"""The shape of the network: one frozen dataclass for all its parts, and three sizes of it.

`tiny` trains on two CPU cores, `small` on one GPU, `base` is the paper's (ViT-B, Mask2Former's decoders of 6 and 9 layers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sohes_cli.settings import require

__all__ = ["MASK_STRIDE", "MODEL_PRESETS", "STRIDE", "ModelConfig"]

STRIDE = 32
"""Of the coarsest feature map, in pixels: images are padded to multiples of it."""

MASK_STRIDE = 4
"""Of the finest feature map, and so of mask logits, in pixels."""


@dataclass(frozen=True)
class ModelConfig:
    """The parts of the network and their sizes.

    Args:
        backbone: a timm VisionTransformer; the four numbers below, where they are not 0, replace its own.
        patch_size: side of a patch in pixels, as the ViT sees the image.
        embed_dim: channels of a token.
        depth: transformer blocks.
        num_heads: attention heads.
        weights: what the ViT starts from: `pretrained` (timm's cache or hub), `random`, a weights file, or a run of `sohes pretrain`.
        token_stride: pixels of the image between two tokens, 4, 8, 16 or 32; the ViT sees the image resized to fit its patches.
        drop_path: rate of stochastic depth at the last block, rising linearly from 0.
        interactions: exchanges between the ViT and the adapter; must divide the number of blocks.
        prior_channels: of the adapter's first convolution.
        adapter_heads: heads of the adapter's deformable attention.
        adapter_points: points a level and head that it samples.
        adapter_value_ratio: channels of its values over those of a token.
        adapter_mlp_ratio: hidden channels of the extractors' MLP over those of a token.
        hidden_dim: C, channels of both decoders.
        heads: attention heads of both decoders.
        pixel_layers: layers of the pixel decoder.
        pixel_points: points a level and head that it samples.
        pixel_mlp_dim: hidden channels of its MLPs.
        decoder_layers: layers of the query decoder.
        decoder_mlp_dim: hidden channels of its MLPs.
        queries: Q, the most masks that one pass can find.
    """

    backbone: str = "vit_base_patch16_224.dino"
    patch_size: int = 0
    embed_dim: int = 0
    depth: int = 0
    num_heads: int = 0
    weights: str = "pretrained"
    token_stride: int = 16
    drop_path: float = 0.3
    interactions: int = 4
    prior_channels: int = 64
    adapter_heads: int = 12
    adapter_points: int = 4
    adapter_value_ratio: float = 0.5
    adapter_mlp_ratio: float = 0.25
    hidden_dim: int = 256
    heads: int = 8
    pixel_layers: int = 6
    pixel_points: int = 4
    pixel_mlp_dim: int = 1024
    decoder_layers: int = 9
    decoder_mlp_dim: int = 2048
    queries: int = 300

    def __post_init__(self) -> None:
        require(bool(self.backbone), "model.backbone", self.backbone, "the timm name of a ViT")
        require(
            bool(self.weights),
            "model.weights",
            self.weights,
            "pretrained, random, a weights file or a run of sohes pretrain",
        )
        require(
            0 <= self.patch_size <= 64,
            "model.patch_size",
            self.patch_size,
            "pixels from 1 to 64, or 0 for the ViT's own",
        )
        for name in ("embed_dim", "depth", "num_heads"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "above 0, or 0 for the ViT's own")
        require(self.token_stride in (4, 8, 16, 32), "model.token_stride", self.token_stride, "4, 8, 16 or 32")
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "a rate in [0, 1)")
        for name in ("adapter_value_ratio", "adapter_mlp_ratio"):
            require(0 < getattr(self, name) <= 8, f"model.{name}", getattr(self, name), "above 0 and at most 8")
        for name in (
            *(
                "interactions",
                "prior_channels",
                "adapter_heads",
                "adapter_points",
                "heads",
                "pixel_layers",
                "pixel_points",
            ),
            *("pixel_mlp_dim", "decoder_layers", "decoder_mlp_dim", "queries"),
        ):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        fits = self.hidden_dim >= 32 and self.hidden_dim % 32 == 0 and self.hidden_dim % self.heads == 0
        require(
            fits,
            "model.hidden_dim",
            self.hidden_dim,
            f"a multiple of 32 (the norms' groups) and of model.heads ({self.heads})",
        )

    @property
    def vit_shape(self) -> dict[str, int]:
        """The numbers that replace timm's own, as arguments of `timm.create_model`."""
        numbers = {name: getattr(self, name) for name in ("patch_size", "embed_dim", "depth", "num_heads")}
        return {name: value for name, value in numbers.items() if value}


MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "backbone": "vit_tiny_patch16_224",
        "patch_size": 8,
        "embed_dim": 256,
        "depth": 6,
        "num_heads": 4,
        "weights": "random",
        "drop_path": 0.0,
        "interactions": 3,
        "prior_channels": 32,
        "adapter_heads": 4,
        "hidden_dim": 128,
        "heads": 4,
        "pixel_layers": 3,
        "pixel_mlp_dim": 512,
        "decoder_layers": 4,
        "decoder_mlp_dim": 512,
        "queries": 200,
    },
    "small": {"backbone": "vit_small_patch16_224.dino", "drop_path": 0.2, "adapter_heads": 6},
    "base": {},
}
"""The group `model` of the presets of `sohes train`."""
