"""The ancestor head: which query is an ancestor of which, from two linear maps of the query features.

    Z = (Q W1) (Q W2)^T / sqrt(C);   sigmoid(Z[i, j]) = probability that query i is an ancestor of query j

Training never makes Z: the fused loss of `sohes_kernels.ancestor_loss` takes W1 and W2.

Source: Cao et al. 2024, ancestor prediction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["AncestorHead"]


class AncestorHead(nn.Module):
    """Two linear maps.

    Args:
        channels: C of the query features.

    Attributes:
        w1: the map of queries as ancestors, [C, C].
        w2: the map of queries as descendants, [C, C].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.empty(channels, channels)), nn.Parameter(torch.empty(channels, channels))
        for weight in (self.w1, self.w2):
            nn.init.xavier_uniform_(weight)

    def forward(self, queries: Tensor) -> Tensor:
        """Ancestor logits of query features [..., Q, C], float [..., Q, Q]; row i is the ancestor."""
        logits: Tensor = (queries @ self.w1) @ (queries @ self.w2).mT / math.sqrt(queries.shape[-1])
        return logits
