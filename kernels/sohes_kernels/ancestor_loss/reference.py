"""Ancestor loss in plain PyTorch: every logit, every target, one mean.

Differentiable by autograd, on any device and in any float dtype. It holds several float32 [L, B, N, N]. In a 16-bit
dtype the logits are rounded to it before the cross entropy, which is computed in float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

if TYPE_CHECKING:
    from torch import Tensor

    from sohes_kernels.ancestor_loss import Ancestors

__all__ = ["ancestor_loss_reference", "ancestor_matrix"]


def ancestor_loss_reference(
    queries: Tensor, w1: Tensor, w2: Tensor, ancestors: Ancestors, is_matched: Tensor
) -> Tensor:
    """Compute the loss [L, B] of queries [L, B, N, C]; see `ancestor_loss` for the contract."""
    n_queries, channels = queries.shape[2:]
    # a NaN in an unmatched row would spread through the gradient of w1 and w2
    queries = queries.masked_fill(~is_matched[..., None], 0)
    logits = (queries @ w1) @ (queries @ w2).mT / math.sqrt(channels)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = ancestor_matrix(ancestors).to(logits.dtype).expand_as(logits)
    diagonal = torch.eye(n_queries, dtype=torch.bool, device=queries.device)
    pairs = is_matched[..., :, None] & is_matched[..., None, :] & ~diagonal
    losses = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return losses.where(pairs, 0).sum(dim=(-2, -1)) / pairs.sum(dim=(-2, -1)).clamp(min=1)


def ancestor_matrix(ancestors: Ancestors) -> Tensor:
    """Return T, True where i is an ancestor of j, bool [..., N, N], from intervals [..., N] or T itself."""
    if not isinstance(ancestors, tuple | list):
        return ancestors
    enter, leave = ancestors
    return (enter[..., :, None] < enter[..., None, :]) & (enter[..., None, :] <= leave[..., :, None])
