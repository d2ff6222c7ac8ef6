"""The ancestor head: probability of each ordered pair of queries that the first is an ancestor of the second.

    Z = (Q W1) (Q W2)^T / sqrt(C);   sigmoid(Z[i, j]) = probability that query i is an ancestor of query j

Training does not materialize Z: the fused loss of `sohes_kernels.ancestor_loss` takes W1 and W2.

Source: Cao et al. 2024, ancestor prediction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["AncestorHead"]


class AncestorHead(nn.Module):
    """Bilinear head on query features.

    Args:
        channels: C of the query features.

    Attributes:
        w1: projection of queries as ancestors, [C, C].
        w2: projection of queries as descendants, [C, C].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.empty(channels, channels)), nn.Parameter(torch.empty(channels, channels))
        nn.init.xavier_uniform_(self.w1)
        nn.init.xavier_uniform_(self.w2)

    def forward(self, queries: Tensor) -> Tensor:
        """Map query features [..., Q, C] to ancestor logits, float [..., Q, Q]; row i is the ancestor."""
        logits: Tensor = (queries @ self.w1) @ (queries @ self.w2).mT / math.sqrt(queries.shape[-1])
        return logits
