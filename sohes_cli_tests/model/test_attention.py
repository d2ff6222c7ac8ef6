"""Masked attention: all backends against the formula, forward and backward, and against PyTorch's layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sohes_cli.model.attention import AttentionBackend, MultiheadAttention, aligned_bias, attend

B, Q, K, M, D = 2, 5, 13, 3, 8
BACKENDS: list[AttentionBackend] = ["auto", "torch", "plain"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def inputs(dtype: torch.dtype = torch.float64, device: str = "cpu", keys: int = K) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, Q, M, D), (B, keys, M, D), (B, keys, M, D))
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def some_allowed(keys: int = K) -> torch.Tensor:
    allowed = torch.rand(B, Q, keys, generator=torch.Generator().manual_seed(1)) < 0.4
    allowed[..., 0] |= ~allowed.any(-1)
    allowed[0, 0], allowed[0, 0, -1] = False, True  # only the last one
    return allowed


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Attend one head and one query at a time, over its allowed keys."""
    rows = []
    for b in range(B):
        for q in range(Q):
            for m in range(M):
                seen = allowed[b, q]
                weights = (key[b, seen, m] @ query[b, q, m] / math.sqrt(D)).exp()
                rows.append(weights / weights.sum() @ value[b, seen, m])
    return torch.stack(rows).view(B, Q, M, D)


def with_gradients(found: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    upstream = torch.linspace(-1, 2, found.numel(), dtype=found.dtype, device=found.device).view(found.shape)
    return [found.detach(), *torch.autograd.grad(found, tensors, upstream)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_the_formula(backend: AttentionBackend, masked: bool) -> None:
    tensors, allowed = inputs(), some_allowed() if masked else None
    everything = torch.ones(B, Q, K, dtype=torch.bool) if allowed is None else allowed
    expected = with_gradients(by_hand(*tensors, everything), tensors)
    for actual, wanted in zip(with_gradients(attend(*tensors, allowed, backend), tensors), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_are_not_allowed_may_hold_anything(backend: AttentionBackend) -> None:
    query, key, value = (t.detach() for t in inputs())
    allowed = some_allowed()
    allowed[..., 4] = False
    found = attend(query, key, value, allowed, backend)
    key[:, 4], value[:, 4] = 1e6, -1e6
    torch.testing.assert_close(attend(query, key, value, allowed, backend), found)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="must be auto, xformers, torch or plain, not 'flash'"):
        attend(*inputs(), backend="flash")  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [1, 7, 8, 9, 13, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_the_mask_in_aligned_rows(keys: int, dtype: torch.dtype) -> None:
    allowed = some_allowed(keys)
    bias = aligned_bias(allowed, M, dtype)
    assert bias.shape == (B, M, Q, keys)
    assert bias.dtype == dtype
    assert torch.equal(bias == 0, allowed[:, None].expand(-1, M, -1, -1))
    assert torch.equal(bias == -math.inf, ~allowed[:, None].expand(-1, M, -1, -1))
    assert bias.stride(-1) == 1
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1])
    assert bias.untyped_storage().nbytes() < (keys + 8) * B * Q * bias.element_size()  # one for all heads


def test_a_bias_added_to_the_logits_is_the_mask() -> None:
    query, key, value = (t.detach() for t in inputs())
    allowed = some_allowed()
    logits = torch.einsum("bqmd,bkmd->bmqk", query, key) / math.sqrt(D) + aligned_bias(allowed, M, query.dtype)
    found = torch.einsum("bmqk,bkmd->bqmd", logits.softmax(-1), value)
    torch.testing.assert_close(found, attend(query, key, value, allowed, "plain"))


@pytest.mark.parametrize("masked", [True, False])
def test_the_layer_is_pytorchs_with_the_same_parameters(masked: bool) -> None:
    torch.manual_seed(0)
    layer, same = MultiheadAttention(M * D, M), nn.MultiheadAttention(M * D, M, batch_first=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    same.load_state_dict(layer.state_dict())
    query, key, value = torch.randn(B, Q, M * D), torch.randn(B, K, M * D), torch.randn(B, K, M * D)
    allowed = some_allowed() if masked else None
    forbidden = None if allowed is None else (~allowed).repeat_interleave(M, 0)
    expected = same(query, key, value, attn_mask=forbidden, need_weights=False)[0]
    torch.testing.assert_close(layer(query, key, value, allowed), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(query, key, value, allowed), expected)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("keys", [13, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_xformers_is_pytorchs_attention(dtype: torch.dtype, keys: int, masked: bool) -> None:
    tensors = inputs(dtype, "cuda", keys)
    allowed = some_allowed(keys).cuda() if masked else None
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = with_gradients(attend(*exact, allowed, "plain"), exact)
    bound = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 4e-2}[dtype]  # float32 may be multiplied as TF32
    for backend in ("xformers", "torch", "auto"):
        found = with_gradients(attend(*tensors, allowed, backend), tensors)
        for actual, wanted in zip(found, expected, strict=True):
            assert float((actual.double() - wanted).norm() / wanted.norm()) < bound, backend
