"""Settings of the network, and three sizes of it.

`tiny` trains on two CPU cores, `small` on one GPU, `base` is the paper's (ViT-B, Mask2Former's decoders of 6 and 9
layers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sohes_cli.settings import Group, count, require, setting, share

__all__ = ["MASK_STRIDE", "MODEL_PRESETS", "STRIDE", "ModelConfig"]

STRIDE = 32
"""Stride of the coarsest feature map in pixels; images are padded to multiples of it."""

MASK_STRIDE = 4
"""Stride of the finest feature map, and of mask logits, in pixels."""

_OWN = "above 0, or 0 for the ViT's own"


@dataclass(frozen=True)
class ModelConfig(Group, name="model"):
    """Parts of the network and their sizes."""

    backbone: str = setting(
        "vit_base_patch16_224.dino", "timm name of a VisionTransformer.", rule=bool, allowed="the timm name of a ViT"
    )
    patch_size: int = setting(
        0, "Side of a patch.", minimum=0, maximum=64, allowed="pixels from 1 to 64, or 0 for the ViT's own"
    )
    embed_dim: int = setting(0, "Channels of a token.", minimum=0, allowed=_OWN)
    depth: int = setting(0, "Number of transformer blocks.", minimum=0, allowed=_OWN)
    num_heads: int = setting(0, "Number of attention heads.", minimum=0, allowed=_OWN)
    weights: str = setting(
        "pretrained",
        "Weights of the ViT: `pretrained` (timm's cache or hub), `random`, a file, or a run of `sohes pretrain`.",
        rule=bool,
        allowed="pretrained, random, a weights file or a run of sohes pretrain",
    )
    token_stride: int = setting(
        16, "Pixels between two tokens, by resizing the ViT's input.", choices=(4, 8, 16, 32), allowed="4, 8, 16 or 32"
    )
    drop_path: float = share(0.3, "Stochastic depth of the last block, linear from 0.", below=1, noun="a rate")
    interactions: int = count(4, "Interactions between ViT and adapter; must divide the number of blocks.")
    prior_channels: int = count(64, "Channels of the adapter's first convolution.")
    adapter_heads: int = count(12, "Heads of the adapter's deformable attention.")
    adapter_points: int = count(4, "Sampling points for each level and head of the adapter's attention.")
    adapter_value_ratio: float = setting(0.5, "Channels of its values over those of a token.", above=0, maximum=8)
    adapter_mlp_ratio: float = setting(0.25, "Channels of its MLPs over those of a token.", above=0, maximum=8)
    hidden_dim: int = setting(256, "C, channels of both decoders; a multiple of 32 and of `heads`.")
    heads: int = count(8, "Attention heads of both decoders.")
    pixel_layers: int = count(6, "Layers of the pixel decoder.")
    pixel_points: int = count(4, "Sampling points for each level and head of the pixel decoder.")
    pixel_mlp_dim: int = count(1024, "Hidden channels of the pixel decoder's MLPs.")
    decoder_layers: int = count(9, "Layers of the query decoder.")
    decoder_mlp_dim: int = count(2048, "Hidden channels of the query decoder's MLPs.")
    queries: int = count(300, "Q, the largest number of masks of one forward pass.")

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.hidden_dim >= 32 and self.hidden_dim % 32 == 0 and self.hidden_dim % self.heads == 0
        allowed = f"a multiple of 32 (the norms' groups) and of model.heads ({self.heads})"
        require(fits, "model.hidden_dim", self.hidden_dim, allowed)

    @property
    def vit_shape(self) -> dict[str, int]:
        """Given numbers of the ViT, as arguments of `timm.create_model`."""
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
"""Group `model` of the presets of `sohes train`."""
