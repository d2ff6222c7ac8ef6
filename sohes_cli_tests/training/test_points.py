"""Masks at points: bits against unpacked masks, maps against their formula and pixels, and the choice of points."""

from __future__ import annotations

import pytest
import torch
from criterion_cases import Scene, bilinear, make_masks, pack, said_at
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes_cli.training.points import draw_points, image_cells, sample_bits, sample_maps, uncertain_points, widened

SIZES = [(64, 96), (33, 40), (1, 1), (50, 31)]


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_maps(size: tuple[int, int], masks: int, seed: int = 0) -> torch.Tensor:
    """Draw maps of the image's own cells."""
    rows, columns = (-(-side // 32) * 8 for side in size)
    return torch.randn(masks, rows, columns, generator=source(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 4), st.integers(0, 1000))
def test_bits_are_those_of_the_unpacked_masks(height: int, width: int, masks: int, seed: int) -> None:
    unpacked = torch.rand(masks, height, width, generator=source(seed)) < 0.5
    points = draw_points(masks, 9, source(seed + 1))
    found = sample_bits(pack(unpacked), height, width, points)
    assert found.dtype == torch.float32
    assert found.tolist() == [[said_at(mask, p) for p in own] for mask, own in zip(unpacked, points, strict=True)]


def test_every_pixel_is_read_at_its_center_and_the_borders_belong_to_the_last_pixels() -> None:
    height, width = 5, 7
    mask = torch.rand(1, height, width, generator=source()) < 0.5
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).view(1, -1, 2)
    assert torch.equal(sample_bits(pack(mask), height, width, centers).view(height, width), mask[0].float())
    corners = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    assert sample_bits(pack(mask), height, width, corners).tolist() == [
        [float(mask[0, i, j]) for i in (0, -1) for j in (0, -1)]
    ]


def test_points_can_be_shared_and_masks_chosen() -> None:
    bits = pack(make_masks(Scene(3, (20, 30), 5)))
    shared, own = draw_points(1, 50, source()), draw_points(3, 50, source(1))
    torch.testing.assert_close(
        sample_bits(bits, 20, 30, shared), sample_bits(bits, 20, 30, shared.expand(5, -1, -1)), rtol=0, atol=0
    )
    rows = torch.tensor([4, 0, 4])
    torch.testing.assert_close(
        sample_bits(bits, 20, 30, own, rows), sample_bits(bits[rows], 20, 30, own), rtol=0, atol=0
    )


@pytest.mark.parametrize("size", SIZES)
def test_maps_are_read_bilinearly(size: tuple[int, int]) -> None:
    maps, points = random_maps(size, 2), draw_points(2, 40, source(1))
    points[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    expected = torch.stack(
        [torch.stack([bilinear(m, size, p) for p in own]) for m, own in zip(maps, points, strict=True)]
    )
    torch.testing.assert_close(sample_maps(maps, size, points), expected)
    torch.testing.assert_close(sample_maps(maps, size, points[:1])[0], expected[0])
    torch.testing.assert_close(
        sample_maps(maps, size, points[:1]), sample_maps(maps, size, points[:1].expand(2, -1, -1))
    )


@pytest.mark.parametrize("size", SIZES[:2])
def test_a_point_is_the_same_place_in_a_map_and_in_the_image(size: tuple[int, int]) -> None:
    rows, columns = random_maps(size, 1).shape[1:]
    x = (4 * torch.arange(columns) + 2.0).expand(rows, -1)  # the pixel on which a cell is centered
    y = (4 * torch.arange(rows) + 2.0)[:, None].expand(-1, columns)
    inner = draw_points(1, 100, source()) * 0.8 + 0.1
    torch.testing.assert_close(sample_maps(torch.stack([x, y]), size, inner), (inner[0] * torch.tensor(size[::-1])).T)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("canvas", [(64, 96), (128, 128)])
def test_padding_is_not_read(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    own = random_maps(size, 3)
    padded = torch.full((3, canvas[0] // 4, canvas[1] // 4), torch.nan, dtype=torch.float64)
    padded[:, : own.shape[1], : own.shape[2]] = own
    points = torch.cat([draw_points(3, 50, source()), torch.ones(3, 1, 2)], 1)
    assert torch.equal(sample_maps(image_cells(padded, size), size, points), sample_maps(own, size, points))


def test_cells_that_are_not_the_image_s_are_refused() -> None:
    with pytest.raises(ValueError, match=r"33 x 40 pixels must have \(16, 16\) cells, not \(16, 24\)"):
        sample_maps(torch.zeros(1, 16, 24), (33, 40), torch.zeros(1, 1, 2))


@pytest.mark.parametrize("importance", [0.0, 0.75, 1.0])
def test_the_least_certain_of_the_drawn_points_are_taken(importance: float) -> None:
    size, count = (50, 31), 16
    maps = random_maps(size, 3)
    points = uncertain_points(maps, size, count, 3.0, importance, source(5))
    drawn = draw_points(3, 3 * count, source(5))
    certain = int(importance * count)
    assert points.shape == (3, count, 2)
    for own, candidates, m in zip(points, drawn, maps, strict=True):
        best = sorted(candidates.tolist(), key=lambda p: abs(float(bilinear(m, size, torch.tensor(p)))))[:certain]
        assert sorted(own[:certain].tolist()) == sorted(best)
        assert not {tuple(p) for p in own[certain:].tolist()} & {tuple(p) for p in candidates.tolist()}


def test_points_lie_in_the_image_and_come_from_the_generator_alone() -> None:
    maps = random_maps((33, 40), 4).requires_grad_()
    points = uncertain_points(maps, (33, 40), 100, 2.0, 0.5, source(6))
    assert not points.requires_grad
    assert points.dtype == torch.float32
    assert float(points.min()) >= 0
    assert float(points.max()) <= 1
    assert torch.equal(points, uncertain_points(maps, (33, 40), 100, 2.0, 0.5, source(6)))
    assert not torch.equal(points, uncertain_points(maps, (33, 40), 100, 2.0, 0.5, source(7)))
    assert not torch.equal(points[0], points[1])


def test_narrow_values_are_widened_and_wide_ones_stay() -> None:
    found = [
        widened(torch.zeros(1, dtype=dtype)).dtype
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    ]
    assert found == [torch.float32, torch.float32, torch.float32, torch.float64]
