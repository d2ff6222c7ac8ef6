"""Masked multi-head attention: cross-attention of queries to pixels, and self-attention.

NVIDIA GPUs run xformers' memory-efficient attention, which does not materialize the Q x K weights and takes the mask
as an additive bias; other devices PyTorch's scaled_dot_product_attention. `plain` is the readable formula of both, for
tests.

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
_ALIGNMENT = 8  # elements; xformers requires rows of a bias to start at a multiple of it


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
        """Attend with queries [B, Q, C] to keys and values [B, K, C] -> [B, Q, C]; `allowed` as in `attend`."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (functional.linear(x, w, b).view(*x.shape[:2], self.heads, -1) for x, w, b in inputs)
        projected: Tensor = self.out_proj(attend(q, k, v, allowed).flatten(2))
        return projected


def attend(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None, backend: AttentionBackend = "auto"
) -> Tensor:
    """Compute softmax(query key^T / sqrt(D)) value per head, over the allowed keys.

    Args:
        query: [B, Q, M, D].
        key: [B, K, M, D].
        value: [B, K, M, D].
        allowed: keys that each query attends to, bool [B, Q, K], at least one per query; None: all.
        backend: `xformers` (memory-efficient attention), `torch` (scaled_dot_product_attention), `plain` (the formula)
            or `auto`: xformers on an NVIDIA GPU where it is installed, else torch.

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
        fused: Tensor = memory_efficient_attention(query, key, value, attn_bias=bias)
        return fused
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
    """Convert a mask [B, Q, K] to the bias [B, M, Q, K] of xformers: 0 or -inf, rows aligned to 8 elements."""
    batch, num_queries, num_keys = allowed.shape
    padded = -(-num_keys // _ALIGNMENT) * _ALIGNMENT
    bias = torch.full((batch, 1, num_queries, padded), float("-inf"), dtype=dtype, device=allowed.device)
    bias = bias[..., :num_keys]
    bias.masked_fill_(allowed[:, None], 0)
    return bias.expand(-1, heads, -1, -1)


def _fastest(query: Tensor) -> AttentionBackend:
    if query.is_cuda and _has_xformers() and not torch.compiler.is_exporting():
        return "xformers"
    return "torch"


@cache
def _has_xformers() -> bool:
    return torch.version.hip is None and importlib.util.find_spec("xformers") is not None
