"""Masked attention of queries: their own mask, or the whole image if it is empty, and never padding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sohes_cli.model.extent import Extent
from sohes_cli.model.query_decoder import allowed_pixels

C = 8


def extent_of(height: int, width: int, sizes: list[tuple[int, int]] | None = None) -> Extent:
    return Extent.of(torch.zeros(len(sizes or [0]), 3, height, width), sizes)


def queries_and_features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, C, generator=generator), torch.randn(2, C, 16, 24, generator=generator)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_query_attends_inside_its_own_mask(stride: int) -> None:
    embeddings, features = queries_and_features()
    features[:, 0], embeddings[:, 0] = 1, 0
    embeddings[0, 0, 0] = -1  # an empty mask
    embeddings[1, 3] = 0  # a probability of 0.5 everywhere
    extent = extent_of(64, 96, [(64, 96)] * 2)
    allowed = allowed_pixels(embeddings, features, extent, stride)
    masks = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    likely = functional.interpolate(masks, extent.grid(stride), mode="bilinear", align_corners=False).sigmoid() >= 0.5
    assert not likely[0, 0].any()
    nowhere = ~likely.flatten(2).any(-1, keepdim=True)
    assert torch.equal(allowed, likely.flatten(2) | nowhere)
    assert allowed[0, 0].all()
    assert allowed[1, 3].all()
    assert 0.2 < float(allowed.float().mean()) < 0.8


@pytest.mark.parametrize("stride", [8, 32])
def test_no_query_attends_to_padding_and_each_attends_to_some_pixel(stride: int) -> None:
    embeddings, features = queries_and_features()
    extent = extent_of(64, 96, [(64, 32), (32, 96)])
    inside = extent.flat_mask((stride,))
    features[0, :, :, 8:], features[1, :, 8:] = 1e3, 1e3
    features[:, 0] = 1
    embeddings[:, 0], embeddings[:, 1] = 0, 0
    embeddings[:, 0, 0], embeddings[:, 1, 0] = -1, 1  # a mask nowhere, and one everywhere
    allowed = allowed_pixels(embeddings, features, extent, stride)
    assert inside is not None
    assert not (allowed & ~inside[:, None]).any()
    assert torch.equal(allowed[:, 0], inside)
    assert torch.equal(allowed[:, 1], inside)
    assert allowed.any(-1).all()


def test_the_attention_mask_has_no_gradient() -> None:
    embeddings, features = (t.requires_grad_() for t in queries_and_features())
    assert not allowed_pixels(embeddings, features, extent_of(64, 96), 8).requires_grad
