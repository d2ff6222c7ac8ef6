"""Deformable attention layer: sampling locations, sampled values, and masked cells."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sohes_cli.model.deformable import DeformableAttention, get_reference_points

SHAPES = [(3, 5), (2, 2)]
S = sum(h * w for h, w in SHAPES)
C, M, P = 12, 3, 2


def layer(seed: int = 0, value_ratio: float = 0.5) -> DeformableAttention:
    made = DeformableAttention(C, len(SHAPES), M, P, value_ratio)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, S, C, generator=generator), torch.randn(2, S, C, generator=generator)


def by_hand(made: DeformableAttention, queries: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Attend one head, level and point at a time."""
    points, value = get_reference_points(SHAPES, torch.device("cpu")), made.value_proj(levels)
    offsets = made.sampling_offsets(queries).view(2, S, M, len(SHAPES), P, 2)
    weights = made.attention_weights(queries).view(2, S, M, -1).softmax(-1).view(2, S, M, len(SHAPES), P)
    maps = value.split([h * w for h, w in SHAPES], 1)
    heads = []
    for m in range(M):
        total = torch.zeros(2, S, value.shape[2] // M)
        for index, (height, width) in enumerate(SHAPES):
            channels = maps[index].unflatten(2, (M, -1))[:, :, m].mT.unflatten(2, (height, width))
            for p in range(P):
                at = points + offsets[:, :, m, index, p] / torch.tensor([width, height])
                read = functional.grid_sample(channels, 2 * at[:, :, None] - 1, align_corners=False)[..., 0]
                total = total + weights[:, :, m, index, p, None] * read.mT
        heads.append(total)
    out: torch.Tensor = made.output_proj(torch.cat(heads, 2))
    return out


@pytest.mark.parametrize("value_ratio", [0.5, 1.0])
def test_a_query_samples_around_its_reference_point(value_ratio: float) -> None:
    made, (queries, levels) = layer(value_ratio=value_ratio), inputs()
    found = made(queries, get_reference_points(SHAPES, queries.device), levels, SHAPES)
    torch.testing.assert_close(found, by_hand(made, queries, levels), rtol=1e-4, atol=1e-5)


def test_masked_pixels_read_as_zero_and_not_as_a_bias() -> None:
    made, (queries, levels) = layer(), inputs()
    mask = torch.rand(2, S, generator=torch.Generator().manual_seed(2)) < 0.6
    points = get_reference_points(SHAPES, queries.device)
    found = made(queries, points, levels, SHAPES, mask)
    changed = torch.where(mask[..., None], levels, 1e3)
    assert torch.equal(made(queries, points, changed, SHAPES, mask), found)
    assert float((found - made(queries, points, levels, SHAPES)).detach().abs().max()) > 1e-2
    nothing = made(queries, points, levels, SHAPES, torch.zeros_like(mask))
    torch.testing.assert_close(nothing, made.output_proj.bias.expand_as(nothing))


def test_a_new_layer_looks_in_all_directions_alike() -> None:
    made = DeformableAttention(C, len(SHAPES), 4, P)
    queries, _ = inputs()
    offsets = made.sampling_offsets(queries)[0, 0].view(4, len(SHAPES), P, 2)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for p in range(P):
        for index in range(len(SHAPES)):
            torch.testing.assert_close(offsets[:, index, p], (p + 1) * directions, atol=1e-6, rtol=0)
    assert not made.attention_weights(queries).any()


def test_heads_must_divide_the_channels_of_the_values() -> None:
    with pytest.raises(ValueError, match="4 heads do not divide 6 channels"):
        DeformableAttention(C, 1, 4, P, value_ratio=0.5)


@pytest.mark.parametrize("shapes", [[(1, 1)], [(3, 5), (2, 2)], [(16, 1), (1, 16)]])
def test_reference_points_are_the_centers_of_pixels(shapes: list[tuple[int, int]]) -> None:
    points = get_reference_points(shapes, torch.device("cpu"))
    expected = [
        ((x + 0.5) / width, (y + 0.5) / height) for height, width in shapes for y in range(height) for x in range(width)
    ]
    assert points.dtype == torch.float32
    torch.testing.assert_close(points, torch.tensor(expected))


def test_a_pixel_that_looks_at_itself_reads_itself() -> None:
    made = DeformableAttention(C, 1, M, 1)
    with torch.no_grad():
        made.sampling_offsets.bias.zero_()
        for projection in (made.value_proj, made.output_proj):
            projection.weight.copy_(torch.eye(C))
    levels = torch.randn(1, 15, C, generator=torch.Generator().manual_seed(0))
    found = made(levels, get_reference_points([(3, 5)], levels.device), levels, [(3, 5)])
    torch.testing.assert_close(found, levels, atol=1e-5, rtol=0)
