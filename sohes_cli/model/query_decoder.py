"""Mask2Former's query decoder: learned queries read the image where their own masks are -> class, mask and features of each query.

    for each layer, at strides 32, 16, 8 in turn:
        queries attend to the pixels inside the mask that they predicted last (to all pixels, where that mask is empty),
        then to each other, then pass an MLP;  class, mask embedding and mask are predicted anew

Parameter names are those of the published code.

Source: Cheng et al. 2022, Mask2Former, section 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sohes_cli.model.attention import MultiheadAttention
from sohes_cli.model.output import Output
from sohes_cli.model.pixel_decoder import DECODER_STRIDES, sine_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.config import ModelConfig
    from sohes_cli.model.extent import Extent

__all__ = ["QueryDecoder", "allowed_pixels"]

_MASK_LAYERS = 3


class QueryDecoder(nn.Module):
    """See the module.

    Args:
        config: sizes of the decoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, layers = config.hidden_dim, config.decoder_layers
        self.transformer_cross_attention_layers = nn.ModuleList(
            _Attending(config, "multihead_attn") for _ in range(layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(_Attending(config, "self_attn") for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(_Mlp(config) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(hidden)
        self.query_feat, self.query_embed = nn.Embedding(config.queries, hidden), nn.Embedding(config.queries, hidden)
        self.level_embed = nn.Embedding(len(DECODER_STRIDES), hidden)
        self.class_embed = nn.Linear(hidden, 2)
        self.mask_embed = nn.ModuleDict(
            {"layers": nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(_MASK_LAYERS))}
        )

    def forward(self, mask_features: Tensor, maps: Sequence[Tensor], extent: Extent) -> Output:
        """Decode.

        Args:
            mask_features: [B, C, H / 4, W / 4].
            maps: [B, C, h, w] at strides 32, 16 and 8.
            extent: of the images in the canvas.

        Returns:
            Predictions of the learned queries and after each layer.
        """
        memories, positions = self._memories(maps, extent)
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        places = self.query_embed.weight[None]
        stages = [self._predict(queries)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (reading, mixing, mlp) in enumerate(layers):
            level = i % len(DECODER_STRIDES)
            allowed = allowed_pixels(stages[-1][1], mask_features, extent, DECODER_STRIDES[level])
            memory = memories[level]
            queries = reading(queries, queries + places, memory + positions[level], memory, allowed)
            queries = mlp(mixing(queries, queries + places, queries + places, queries))
            stages.append(self._predict(queries))
        logits, embeddings, features = (torch.stack(values) for values in zip(*stages, strict=True))
        return Output(logits, embeddings, features, mask_features)

    def _memories(self, maps: Sequence[Tensor], extent: Extent) -> tuple[list[Tensor], list[Tensor]]:
        """The pixels that queries read, [B, h * w, C] a level, and their position embeddings."""
        memories = [level.flatten(2).mT + embed for level, embed in zip(maps, self.level_embed.weight, strict=True)]
        positions = [
            sine_positions(extent, stride, level.shape[1]).to(level.dtype).flatten(2).mT
            for level, stride in zip(maps, DECODER_STRIDES, strict=True)
        ]
        return memories, positions

    def _predict(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [B, Q, 2], mask embeddings [B, Q, C] and normalized features [B, Q, C]."""
        features = self.decoder_norm(queries)
        x = features
        *layers, last = cast("nn.ModuleList", self.mask_embed["layers"])
        for layer in layers:
            x = functional.relu(layer(x))
        return self.class_embed(features), last(x), features


@torch.no_grad()
def allowed_pixels(embeddings: Tensor, mask_features: Tensor, extent: Extent, stride: int) -> Tensor:
    """The pixels of a level that each query may read: those where its mask is at least as likely as not, or all if there are none.

    Args:
        embeddings: mask embeddings, [B, Q, C].
        mask_features: [B, C, H / 4, W / 4].
        extent: of the images in the canvas; no query reads padding.
        stride: of the level.

    Returns:
        bool [B, Q, h * w].
    """
    # masks are linear in the features, so reducing these, C maps an image, is reducing the masks, Q maps
    reduced = functional.interpolate(mask_features.detach(), extent.grid(stride), mode="bilinear", align_corners=False)
    allowed = torch.einsum("bqc,bcn->bqn", embeddings.detach(), reduced.flatten(2)) >= 0
    inside = extent.mask(stride)
    inside = torch.ones_like(allowed[:, :1]) if inside is None else inside.flatten(2)
    allowed = allowed & inside
    return allowed | (inside & ~allowed.any(-1, keepdim=True))


class _Attending(nn.Module):
    """Attention, added and normalized.

    Args:
        config: sizes of the decoder.
        name: of the attention among the parameters.
    """

    def __init__(self, config: ModelConfig, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, MultiheadAttention(config.hidden_dim, config.heads))
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        normal: Tensor = self.norm(x + self.get_submodule(self.name)(query, key, value, allowed))
        return normal


class _Mlp(nn.Module):
    """Two linear maps with a ReLU, added and normalized.

    Args:
        config: sizes of the decoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_dim, config.decoder_mlp_dim)
        self.linear2 = nn.Linear(config.decoder_mlp_dim, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = self.norm(x + self.linear2(functional.relu(self.linear1(x))))
        return normal
