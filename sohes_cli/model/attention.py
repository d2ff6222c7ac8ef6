"""Attention of queries to pixels and to each other, with a mask of what each query may see.

On an NVIDIA GPU xformers' memory-efficient attention, which never holds the Q x K weights and takes the mask as an additive bias; elsewhere
PyTorch's scaled_dot_product_attention. The plain formula, which says what both compute, stands beside them; the tests prove them equal.

Source: masked attention, Cheng et al. 2022, Mask2Former, section 3.2.1.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AttentionBackend", "MultiheadAttention", "aligned_bias", "attend"]

AttentionBackend = Literal["auto", "xformers", "torch", "plain"]
_ALIGNMENT = 8  # of the rows of a bias, in elements


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameter names of `torch.nn.MultiheadAttention`.

    Args:
        channels: C.
        heads: M; must divide C.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, C].
            key: [B, K, C].
            value: [B, K, C].
            allowed: which keys a query may see, bool [B, Q, K], at least one for each; None for all.

        Returns:
            [B, Q, C].
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (functional.linear(x, w, b).view(*x.shape[:2], self.heads, -1) for x, w, b in inputs)
        projected: Tensor = self.out_proj(attend(q, k, v, allowed).flatten(2))
        return projected


def attend(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, backend: AttentionBackend = "auto"
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value for each head, over the keys that are allowed.

    Args:
        query: [B, Q, M, D].
        key: [B, K, M, D].
        value: [B, K, M, D].
        allowed: bool [B, Q, K], at least one key for each query; None for all.
        backend: `xformers` (memory-efficient attention), `torch` (scaled_dot_product_attention), `plain` (its formula) or `auto`: the
            first on an NVIDIA GPU where it is installed, else the second.

    Returns:
        [B, Q, M, D].

    Raises:
        ValueError: if the backend is unknown.
    """
    if backend == "auto":
        backend = _fastest(query)
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        bias = None if allowed is None else aligned_bias(allowed, query.shape[2], query.dtype)
        found: Tensor = memory_efficient_attention(query, key, value, attn_bias=bias)
        return found
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    mask = None if allowed is None else allowed[:, None]
    if backend == "torch":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    if backend != "plain":
        raise ValueError(f"backend must be auto, xformers, torch or plain, not {backend!r}")
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    logits = logits if mask is None else logits.masked_fill(~mask, float("-inf"))
    attended: Tensor = (logits.softmax(-1).to(v.dtype) @ v).transpose(1, 2)
    return attended


def aligned_bias(allowed: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """A mask [B, Q, K] as the bias [B, M, Q, K] that xformers adds: 0 or -inf, each row beginning at a multiple of 8 elements."""
    batch, n_queries, n_keys = allowed.shape
    padded = -(-n_keys // _ALIGNMENT) * _ALIGNMENT
    bias = torch.full((batch, 1, n_queries, padded), float("-inf"), dtype=dtype, device=allowed.device)[..., :n_keys]
    bias.masked_fill_(allowed[:, None], 0)
    return bias.expand(-1, heads, -1, -1)


def _fastest(query: Tensor) -> AttentionBackend:
    if query.is_cuda and _has_xformers() and not torch.compiler.is_exporting():
        return "xformers"
    return "torch"


@cache
def _has_xformers() -> bool:
    return torch.version.hip is None and importlib.util.find_spec("xformers") is not None
