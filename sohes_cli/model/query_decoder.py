"""Mask2Former's query decoder: learned queries and pixel features -> class, mask embedding and features of each query.

    for each layer, at strides 32, 16, 8 in turn:
        masked cross-attention of queries to the pixels inside their last predicted mask (all pixels if it is empty),
        self-attention, FFN;  then class, mask embedding and mask are predicted anew

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
from sohes_cli.model.pixel_decoder import DECODER_STRIDES, level_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.config import ModelConfig
    from sohes_cli.model.extent import Extent

__all__ = ["QueryDecoder", "allowed_pixels"]

_MASK_LAYERS = 3


class QueryDecoder(nn.Module):
    """Transformer decoder with masked cross-attention, and a prediction before the first and after each layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, layers = config.hidden_dim, range(config.decoder_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            _AttentionLayer(config, "multihead_attn") for _ in layers
        )
        self.transformer_self_attention_layers = nn.ModuleList(_AttentionLayer(config, "self_attn") for _ in layers)
        self.transformer_ffn_layers = nn.ModuleList(_FfnLayer(config) for _ in layers)
        self.decoder_norm = nn.LayerNorm(hidden)
        self.query_feat, self.query_embed = nn.Embedding(config.queries, hidden), nn.Embedding(config.queries, hidden)
        self.level_embed = nn.Embedding(len(DECODER_STRIDES), hidden)
        self.class_embed = nn.Linear(hidden, 2)
        mask_layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(_MASK_LAYERS))
        self.mask_embed = nn.ModuleDict({"layers": mask_layers})

    def forward(self, mask_features: Tensor, maps: Sequence[Tensor], extent: Extent) -> Output:
        """Decode.

        Args:
            mask_features: [B, C, H / 4, W / 4].
            maps: [B, C, h, w] at strides 32, 16 and 8.
            extent: of the images in the canvas.

        Returns:
            Predictions of the learned queries and after each layer.
        """
        memories = [level.flatten(2).mT + embed for level, embed in zip(maps, self.level_embed.weight, strict=True)]
        key_pos, query_pos = level_positions(maps, extent), self.query_embed.weight[None]
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        stages = [self._predict(queries)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attn, self_attn, ffn) in enumerate(layers):
            level = i % len(DECODER_STRIDES)
            allowed = allowed_pixels(stages[-1][1], mask_features, extent, DECODER_STRIDES[level])
            memory = memories[level]
            queries = cross_attn(queries, queries + query_pos, memory + key_pos[level], memory, allowed)
            queries = ffn(self_attn(queries, queries + query_pos, queries + query_pos, queries))
            stages.append(self._predict(queries))
        pred_logits, mask_embeddings, features = (torch.stack(values) for values in zip(*stages, strict=True))
        return Output(pred_logits, mask_embeddings, features, mask_features)

    def _predict(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict class logits [B, Q, 2], mask embeddings [B, Q, C] and normalized features [B, Q, C]."""
        x = features = self.decoder_norm(queries)
        *layers, last = cast("nn.ModuleList", self.mask_embed["layers"])
        for layer in layers:
            x = functional.relu(layer(x))
        return self.class_embed(features), last(x), features


@torch.no_grad()
def allowed_pixels(embeddings: Tensor, mask_features: Tensor, extent: Extent, stride: int) -> Tensor:
    """Return the attention mask of a level: pixels with mask probability >= 0.5, or all pixels if there are none.

    Args:
        embeddings: mask embeddings, [B, Q, C].
        mask_features: [B, C, H / 4, W / 4].
        extent: of the images in the canvas; padding is never allowed.
        stride: of the level.

    Returns:
        bool [B, Q, h * w].
    """
    # masks are linear in the features, so C feature maps are resized instead of Q masks
    reduced = functional.interpolate(mask_features.detach(), extent.grid(stride), mode="bilinear", align_corners=False)
    allowed = torch.einsum("bqc,bcn->bqn", embeddings.detach(), reduced.flatten(2)) >= 0
    mask = extent.mask(stride)
    valid = torch.ones_like(allowed[:, :1]) if mask is None else mask.flatten(2)
    allowed = allowed & valid
    return allowed | (valid & ~allowed.any(-1, keepdim=True))


class _AttentionLayer(nn.Module):
    """Attention with a residual connection and post-norm; `name` is the attention's name among the parameters."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, MultiheadAttention(config.hidden_dim, config.heads))
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        out: Tensor = self.norm(x + self.get_submodule(self.name)(query, key, value, allowed))
        return out


class _FfnLayer(nn.Module):
    """Feed-forward network with a residual connection and post-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_dim, config.decoder_mlp_dim)
        self.linear2 = nn.Linear(config.decoder_mlp_dim, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.linear2(functional.relu(self.linear1(x))))
        return out
