"""Student and teacher: a timm ViT with a projection head for each term of the loss.

From views to what the terms compare: logits of class tokens and of hidden patches over K prototypes, and unit vectors of patches. The
student is shown views with patches hidden; the teacher has the same parts, and its parameters are a moving average of the student's.

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
    """Tokens -> unit vectors, by three linear maps.

    Args:
        channels: C of a token.
        config: sizes of the layers.
    """

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
        """Tokens [..., C] to unit vectors, float32 [..., D]."""
        return functional.normalize(self.mlp(tokens).float(), dim=-1)


class ClusterHead(VectorHead):
    """Tokens -> logits over prototypes: the cosine of their vectors with K learned ones.

    Args:
        channels: C of a token.
        prototypes: K.
        config: sizes of the layers.
    """

    def __init__(self, channels: int, prototypes: int, config: LossConfig) -> None:
        super().__init__(channels, config)
        self.prototypes = nn.Parameter(torch.empty(prototypes, config.bottleneck_dim))
        nn.init.normal_(self.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [..., C] to cosines in [-1, 1], [..., K]."""
        return functional.linear(super().forward(tokens), functional.normalize(self.prototypes, dim=-1))


class Network(nn.Module):
    """A ViT with a mask token and a head for each term of the loss; see the module.

    Args:
        config: the shape of the ViT and of the heads; a term whose weight is 0 has no head.
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
            masks: patches to hide, bool [N, P].

        Returns:
            The class token of each view, [N, C], and its patch tokens, [N, P, C], after the last norm.
        """
        vit = self.vit
        x = vit.patch_embed(
            pixels
        )  # [N, h, w, C]: the grid is kept, because position embeddings are interpolated to it
        if masks is not None:
            x = torch.where(masks.view(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        x = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(x))))
        return x[:, 0], x[:, vit.num_prefix_tokens :]

    def forward(
        self, large: Tensor, masks: Tensor, pairs: Tensor, small: Tensor | None = None, hides: bool = False
    ) -> dict[str, Tensor]:
        """Project what the losses compare, for B photographs.

        Args:
            large: normalized global views, float [B * 2, 3, S, S].
            masks: hidden patches of them, bool [B * 2, P]; their logits are given.
            pairs: numbers of the patches whose vectors are given, int64 [B, n], counted over the views of a photograph, large ones first.
            small: normalized local views, float [B * V, 3, T, T].
            hides: whether the ViT does not see the hidden patches.

        Returns:
            `features`, patch tokens of the large views [B * 2, P, C], and, for the terms that the loss has, `image` [B * 2, K] and
            `image_small` [B * V, K], `masked` [hidden patches, K'], and `match`, unit vectors [B, n, D].
        """
        images, patches = self.tokens(large, masks if hides else None)
        found = {"features": patches}
        seen = patches.reshape(len(pairs), -1, patches.shape[-1])  # [B, 2 * P, C]
        if self.image_head is not None:
            found["image"] = self.image_head(images)
        if self.masked_head is not None:
            found["masked"] = self.masked_head(patches[masks])
        if small is not None and len(small):
            images, patches = self.tokens(small)
            seen = torch.cat([seen, patches.reshape(len(pairs), -1, patches.shape[-1])], 1)
            if self.image_head is not None:
                found["image_small"] = self.image_head(images)
        if self.match_head is not None:
            found["match"] = self.match_head(seen.gather(1, pairs[..., None].expand(-1, -1, seen.shape[2])))
        return found

    def freeze_prototypes(self) -> None:
        """Take their gradient from the prototypes of both heads."""
        for head in (self.image_head, self.masked_head):
            if head is not None:
                head.prototypes.grad = None
