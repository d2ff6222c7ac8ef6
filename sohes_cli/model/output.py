"""The network's predictions for a batch of images, at every stage of its query decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ENTITY", "NO_OBJECT", "Output"]

ENTITY, NO_OBJECT = 0, 1
"""Indices of the two classes in `Output.pred_logits`."""


class Output(NamedTuple):
    """Predictions of L + 1 stages: of the learned queries, and after each of the L layers of the query decoder.

    A mask is the product of a query's embedding with the mask features, so single points of it can be computed alone.

    Args:
        pred_logits: of the classes entity and no object, float [L + 1, B, Q, 2].
        mask_embeddings: float [L + 1, B, Q, C].
        queries: query features, from which class, mask and ancestors are predicted, float [L + 1, B, Q, C].
        mask_features: at stride 4, float [B, C, H / 4, W / 4].
    """

    pred_logits: Tensor
    mask_embeddings: Tensor
    queries: Tensor
    mask_features: Tensor

    def pred_masks(self, stage: int = -1) -> Tensor:
        """Compute the mask logits of one stage, float [B, Q, H / 4, W / 4]."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embeddings[stage], self.mask_features)
