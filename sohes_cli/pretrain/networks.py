"""Student and teacher networks: a timm ViT with a projection head for each term of the loss.

Outputs are logits of class tokens and of masked patches over K prototypes, and unit vectors of patches. The student
sees views with masked patches; the teacher has the same architecture, its parameters a moving average of the student's.

Source: heads, Caron et al. 2021 (DINO); the mask token and the head for patches, Zhou et al. 2022 (iBOT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from sohes_cli.vit.build import build_vit

if TYPE_CHECKING:
    from sohes_cli.pretrain.config import LossConfig, PretrainConfig

__all__ = ["ClusterHead", "Network", "VectorHead"]


class VectorHead(nn.Module):
    """MLP of three layers from tokens to unit vectors."""

    def __init__(self, channels: int, config: LossConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens [..., C] to unit vectors, float32 [..., D]."""
        return functional.normalize(self.mlp(tokens).float(), dim=-1)


class ClusterHead(VectorHead):
    """Logits of tokens over K learned prototypes: cosines of their unit vectors with the prototypes."""

    def __init__(self, channels: int, prototypes: int, config: LossConfig) -> None:
        super().__init__(channels, config)
        self.prototypes = nn.Parameter(torch.empty(prototypes, config.bottleneck_dim))
        nn.init.normal_(self.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute cosines in [-1, 1], [..., K], of tokens [..., C]."""
        return functional.linear(super().forward(tokens), functional.normalize(self.prototypes, dim=-1))


class Network(nn.Module):
    """ViT with a mask token and a head for each term of the loss.

    Args:
        config: sizes of the ViT and the heads; a term of weight 0 has no head.
        drop_path: rate of stochastic depth; 0 for a teacher.
    """

    def __init__(self, config: PretrainConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        loss = config.loss
        self.vit = build_vit(config.model.name, config.model.shape, drop_path)
        channels = int(self.vit.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(channels))
        self.image_head = ClusterHead(channels, loss.image_prototypes, loss) if loss.image_weight else None
        self.masked_head = ClusterHead(channels, loss.patch_prototypes, loss) if loss.masked_weight else None
        self.match_head = VectorHead(channels, loss) if loss.match_weight else None

    def tokens(self, pixels: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the ViT.

        Args:
            pixels: normalized RGB, float [N, 3, S, S].
            masks: patches to replace by the mask token, bool [N, P].

        Returns:
            Class token [N, C] and patch tokens [N, P, C] of each view after the last norm.
        """
        vit = self.vit
        x = vit.patch_embed(pixels)  # [N, h, w, C]: position embeddings are interpolated to this grid
        if masks is not None:
            x = torch.where(masks.view(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        x = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(x))))
        return x[:, 0], x[:, vit.num_prefix_tokens :]

    def forward(
        self, large: Tensor, masks: Tensor, pairs: Tensor, small: Tensor | None = None, hides: bool = False
    ) -> dict[str, Tensor]:
        """Compute the outputs that the losses compare, for B photographs.

        Args:
            large: normalized global views, float [B * 2, 3, S, S].
            masks: patches of the global views with `masked` logits, bool [B * 2, P].
            pairs: patches with `match` vectors, int64 [B, n]; numbered as in `ViewSample`.
            small: normalized local views, float [B * V, 3, T, T].
            hides: True to replace the masked patches by the mask token.

        Returns:
            `features`, patch tokens of the global views [B * 2, P, C], and, for terms of non-zero weight,
            `image` [B * 2, K], `image_small` [B * V, K], `masked` [masked patches, K'] and `match` [B, n, D].
        """
        class_tokens, patches = self.tokens(large, masks if hides else None)
        outputs = {"features": patches}
        all_patches = patches.reshape(len(pairs), -1, patches.shape[-1])  # [B, 2 * P, C]
        if self.image_head is not None:
            outputs["image"] = self.image_head(class_tokens)
        if self.masked_head is not None:
            outputs["masked"] = self.masked_head(patches[masks])
        if small is not None and len(small):
            class_tokens, patches = self.tokens(small)
            all_patches = torch.cat([all_patches, patches.reshape(len(pairs), -1, patches.shape[-1])], 1)
            if self.image_head is not None:
                outputs["image_small"] = self.image_head(class_tokens)
        if self.match_head is not None:
            index = pairs[..., None].expand(-1, -1, all_patches.shape[2])
            outputs["match"] = self.match_head(all_patches.gather(1, index))
        return outputs

    def freeze_prototypes(self) -> None:
        """Drop the gradient of the prototypes of both heads."""
        for head in (self.image_head, self.masked_head):
            if head is not None:
                head.prototypes.grad = None
