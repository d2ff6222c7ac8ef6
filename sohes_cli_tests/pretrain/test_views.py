"""Views of a photograph: pixels agree with boxes, and matched patches show the same location."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sohes_cli.pretrain.config import ViewsConfig
from sohes_cli.pretrain.views import ViewSample, collate_views, cut_views, draw_box, patch_matches

PATCH = 8
CONFIG = ViewsConfig(global_size=64, local_size=32, local_views=3, pairs=40, pair_radius=0.0)
SIDES = (8, 8, 4, 4, 4)  # patches per side of each view, global ones first


def coordinates(height: int, width: int) -> np.ndarray:
    """Make an image that encodes x in red and y in green, in 256ths of its sides."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)[None]
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def sample(seed: int = 0, config: ViewsConfig = CONFIG, height: int = 150, width: int = 200) -> ViewSample:
    return cut_views(coordinates(height, width), config, PATCH, np.random.default_rng(seed))


def places(cut: ViewSample) -> np.ndarray:
    """Compute the (x, y) of each patch from its mean color, in shares of the photograph, [patches of all views, 2]."""
    found = []
    for views in (cut.globals, cut.locals):
        for pixels in views.pixels.numpy().astype(float):
            side = len(pixels) // PATCH
            found.append(pixels.reshape(side, PATCH, side, PATCH, 3).mean((1, 3))[..., :2].reshape(-1, 2) / 255)
    return np.concatenate(found)


def extents(cut: ViewSample) -> np.ndarray:
    """Compute width and height of each patch as shares of the photograph, [patches, 2]."""
    sizes = torch.cat([cut.globals.boxes, cut.locals.boxes])[:, 2:].abs().numpy() / (200, 150)
    return np.concatenate(
        [np.repeat(size[None] / side, side * side, 0) for size, side in zip(sizes, SIDES, strict=True)]
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_pixels_of_a_view_are_those_of_its_box(seed: int) -> None:
    cut = sample(seed)
    start = 0
    for box, side in zip(torch.cat([cut.globals.boxes, cut.locals.boxes]).numpy(), SIDES, strict=True):
        left, top, width, height = box
        steps = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid((left + steps * width) / 200, (top + steps * height) / 150)
        seen = places(cut)[start : start + side * side]
        np.testing.assert_allclose(seen[:, 0], x.ravel(), atol=0.012)
        np.testing.assert_allclose(seen[:, 1], y.ravel(), atol=0.012)
        start += side * side


def test_some_views_are_mirrored_and_some_are_not() -> None:
    widths = torch.cat([sample(seed).globals.boxes[:, 2] for seed in range(20)])
    assert 5 < int((widths < 0).sum()) < 35


@pytest.mark.parametrize("seed", range(8))
def test_pairs_show_the_same_place_in_two_views(seed: int) -> None:
    cut = sample(seed)
    assert bool(cut.paired)
    assert cut.pairs.shape == (CONFIG.pairs, 2)
    student, teacher = cut.pairs.numpy().T
    views = np.repeat(np.arange(5), np.square(SIDES))
    assert (views[teacher] < 2).all()
    assert (views[student] != views[teacher]).all()
    distance = np.abs(places(cut)[student] - places(cut)[teacher])
    assert (distance <= extents(cut)[teacher] / 2 + 0.02).all()  # centers are within the matched patches


def slow_matches(cut: ViewSample) -> set[tuple[int, int]]:
    """Match each patch to the patch of another, global view that contains its center, by loops over boxes."""
    boxes = torch.cat([cut.globals.boxes, cut.locals.boxes]).double().tolist()
    starts = np.cumsum([0, *np.square(SIDES)])
    found = set()
    for v, (left, top, width, height) in enumerate(boxes):
        for patch in range(SIDES[v] ** 2):
            row, column = divmod(patch, SIDES[v])
            x, y = left + (column + 0.5) * width / SIDES[v], top + (row + 0.5) * height / SIDES[v]
            for t in {0, 1} - {v}:
                other = boxes[t]
                across, down = (x - other[0]) / other[2] * SIDES[t], (y - other[1]) / other[3] * SIDES[t]
                if 0 <= across < SIDES[t] and 0 <= down < SIDES[t]:
                    found.add(
                        (int(starts[v]) + patch, int(starts[t]) + SIDES[t] * math.floor(down) + math.floor(across))
                    )
    return found


@pytest.mark.parametrize("seed", range(6))
def test_as_many_pairs_as_there_are_matches_are_all_of_them(seed: int) -> None:
    expected = slow_matches(sample(seed))
    pairs = sample(seed, dataclasses.replace(CONFIG, pairs=len(expected))).pairs
    assert sorted(map(tuple, pairs.tolist())) == sorted(expected)
    more = sample(seed, dataclasses.replace(CONFIG, pairs=len(expected) + 50)).pairs
    assert len(more) == len(expected) + 50
    assert set(map(tuple, more.tolist())) <= expected


def test_pairs_come_from_global_and_local_views() -> None:
    views = np.repeat(np.arange(5), np.square(SIDES))
    seen = {int(v) for seed in range(5) for v in views[sample(seed).pairs[:, 0].numpy()]}
    assert seen == set(range(5))


def centers(cut: ViewSample) -> np.ndarray:
    """Compute the (x, y) of each patch from its view's box, in shares of the photograph, [patches of all views, 2]."""
    found = []
    for (left, top, width, height), side in zip(
        torch.cat([cut.globals.boxes, cut.locals.boxes]).tolist(), SIDES, strict=True
    ):
        steps = (np.arange(side) + 0.5) / side
        x, y = np.meshgrid((left + steps * width) / 200, (top + steps * height) / 150)
        found.append(np.stack([x.ravel(), y.ravel()], 1))
    return np.concatenate(found)


@pytest.mark.parametrize("radius", [0.0, 0.7, 2.0])
def test_the_second_place_is_spread_over_the_radius_and_no_further(radius: float) -> None:
    distances = []
    for seed in range(6):
        cut = sample(seed, dataclasses.replace(CONFIG, pairs=300, pair_radius=radius))
        student, teacher = cut.pairs.numpy().T
        # in patches of the teacher
        distances.append((centers(cut)[student] - centers(cut)[teacher]) / extents(cut)[teacher])
    for ends in (np.concatenate(distances).max(0), -np.concatenate(distances).min(0)):
        assert (ends <= radius + 0.5 + 1e-4).all()
        assert (ends > 0.8 * (radius + 0.5)).all()


def test_views_that_do_not_meet_have_no_pairs() -> None:
    apart = ViewsConfig(
        global_size=64, global_scale=(0.01, 0.01), local_size=32, local_scale=(0.01, 0.01), local_views=1, pairs=7
    )
    cuts = [cut_views(coordinates(600, 600), apart, PATCH, np.random.default_rng(seed)) for seed in range(20)]
    alone = [cut for cut in cuts if not cut.paired]
    assert alone
    assert all(cut.pairs.shape == (7, 2) and not cut.pairs.any() for cut in alone)


@pytest.mark.parametrize("mirrored", [False, True])
def test_matches_are_those_of_a_search_over_all_patches(mirrored: bool) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        boxes = rng.uniform(0, 50, (2, 4)).astype(np.float32) + np.array([0, 0, 20, 20], np.float32)
        if mirrored:
            boxes[1] = boxes[1, 0] + boxes[1, 2], boxes[1, 1], -boxes[1, 2], boxes[1, 3]
        index, inside = patch_matches(torch.tensor(boxes[0]).float(), torch.tensor(boxes[1]).float(), 3, 5)
        for patch in range(9):
            x = boxes[0, 0] + (patch % 3 + 0.5) / 3 * boxes[0, 2]
            y = boxes[0, 1] + (patch // 3 + 0.5) / 3 * boxes[0, 3]
            hits = []
            for other in range(25):
                sides = sorted(boxes[1, 0] + (other % 5 + e) / 5 * boxes[1, 2] for e in (0, 1))
                ends = sorted(boxes[1, 1] + (other // 5 + e) / 5 * boxes[1, 3] for e in (0, 1))
                if sides[0] <= x < sides[1] and ends[0] <= y < ends[1]:
                    hits.append(other)
            assert bool(inside[patch]) == bool(hits)
            assert not hits or int(index[patch]) in hits


@pytest.mark.parametrize("teacher", [(100, 0, 40, 40), (0, 60.5, 50, 30), (90, 0, -40, 50), (50, 0, 50, 50)])
def test_boxes_apart_and_boxes_that_only_touch_have_no_matches(teacher: tuple[float, ...]) -> None:
    student = torch.tensor([0.0, 0, 50, 50])
    assert not patch_matches(student, torch.tensor(teacher, dtype=torch.float32), 4, 6)[1].any()


@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-3, 0), (0, 4), (5, 5)])
def test_a_shift_moves_a_match_by_whole_rows_and_columns_of_the_teacher(shift: tuple[int, int]) -> None:
    box = torch.tensor([30.0, 10, -30, 20]).expand(2, 4)
    index, inside = patch_matches(box, box, 5, 5, torch.tensor(shift).float().expand(2, 25, 2))
    rows, columns = np.divmod(np.arange(25), 5) + np.array(shift)[:, None]
    expected = (rows >= 0) & (rows < 5) & (columns >= 0) & (columns < 5)
    assert inside.tolist() == [expected.tolist()] * 2
    assert index[:, torch.from_numpy(expected)].tolist() == [(rows * 5 + columns)[expected].tolist()] * 2


def tensors(cut: ViewSample) -> dict[str, torch.Tensor]:
    views = {
        f"{group}.{name}": getattr(getattr(cut, group), name)
        for group in ("globals", "locals")
        for name in ("pixels", "boxes", "colors")
    }
    return views | {"masks": cut.masks, "pairs": cut.pairs}


def test_a_sample_is_decided_by_its_generator() -> None:
    config = dataclasses.replace(CONFIG, mask_probability=1.0)
    first, again, other = (tensors(sample(seed, config)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_view_of_the_whole_photograph_is_the_photograph_or_its_mirror_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    config = dataclasses.replace(CONFIG, global_scale=(1.0, 1.0), local_views=0)
    mirrored = []
    for seed in range(5):
        views = cut_views(pixels, config, PATCH, np.random.default_rng(seed)).globals
        for view, box in zip(views.pixels.numpy(), views.boxes.tolist(), strict=True):
            mirrored.append(box[2] < 0)
            assert box == ([64, 0, -64, 64] if mirrored[-1] else [0, 0, 64, 64])
            np.testing.assert_array_equal(view, pixels[:, ::-1] if mirrored[-1] else pixels)
    assert {True, False} == set(mirrored)


def test_masks_hide_a_share_of_the_patches_of_some_views() -> None:
    config = ViewsConfig(global_size=64, local_size=32, mask_probability=0.5, mask_ratio=(0.2, 0.4))
    shares = torch.cat([sample(seed, config).masks.float().mean(1) for seed in range(40)])
    assert 0.3 < float((shares > 0).float().mean()) < 0.7
    hidden = shares[shares > 0]
    assert float(hidden.min()) >= 0.2 - 1 / 64
    assert float(hidden.max()) <= 0.4 + 1 / 64


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (9, 5), (40, 400)])
def test_any_image_has_views(height: int, width: int) -> None:
    cut = sample(3, CONFIG, height, width)
    assert cut.globals.pixels.shape == (2, 64, 64, 3)
    boxes = torch.cat([cut.globals.boxes, cut.locals.boxes])
    ends = boxes[:, :2] + boxes[:, 2:]
    assert float(torch.minimum(boxes[:, :2], ends).min()) >= 0
    assert bool((torch.maximum(boxes[:, :2], ends) <= torch.tensor([width, height])).all())


@pytest.mark.parametrize(("height", "width"), [(300, 400), (90, 60), (37, 41), (50, 150)])
def test_the_area_and_the_aspect_of_a_box_lie_in_their_ranges(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    lefts, tops, widths, heights = np.array([draw_box(height, width, (0.1, 0.4), rng) for _ in range(300)]).T
    assert (lefts >= 0).all()
    assert (tops >= 0).all()
    assert (lefts + widths <= width).all()
    assert (tops + heights <= height).all()
    area_px = height * width  # sides are rounded to pixels
    assert ((widths + 0.5) * (heights + 0.5) >= 0.1 * area_px).all()
    assert ((widths - 0.5) * (heights - 0.5) <= 0.4 * area_px).all()
    assert ((widths + 0.5) / (heights - 0.5) >= 3 / 4).all()
    assert ((widths - 0.5) / (heights + 0.5) <= 4 / 3).all()
    shares = widths * heights / area_px
    assert shares.min() < 0.15
    assert shares.max() > 0.35


def test_a_box_may_lie_anywhere() -> None:
    rng = np.random.default_rng(0)
    boxes = {draw_box(5, 4, (0.2, 0.2), rng) for _ in range(300)}  # of 2 x 2 pixels
    assert boxes == {(left, top, 2, 2) for left in range(3) for top in range(4)}


@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1), (2, 90), (1, 1)])
def test_an_image_too_long_or_too_small_for_a_box_gives_its_largest_square(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    side = min(height, width)
    boxes = [draw_box(height, width, (0.3, 0.4), rng) for _ in range(100)]
    assert {box[2:] for box in boxes} == {(side, side)}
    assert all(0 <= left <= width - side and 0 <= top <= height - side for left, top, _, _ in boxes)
    assert len(set(boxes)) > 20 or side == max(height, width)


def test_global_and_local_views_have_areas_of_their_own() -> None:
    for seed in range(20):
        cut = sample(seed)
        for views, (smallest, largest) in ((cut.globals, CONFIG.global_scale), (cut.locals, CONFIG.local_scale)):
            shares = views.boxes[:, 2:].abs().prod(1) / 30000
            assert float(shares.min()) > smallest * 0.95
            assert float(shares.max()) < largest * 1.05


def test_a_batch_stacks_samples_and_keeps_messages() -> None:
    batch = collate_views([sample(0), sample(1), sample(2)])
    assert batch.globals.pixels.shape == (3, 2, 64, 64, 3)
    assert batch.locals.boxes.shape == (3, 3, 4)
    assert batch.pairs.shape == (3, CONFIG.pairs, 2)
    assert batch.paired.tolist() == [True] * 3


def test_there_may_be_no_local_views() -> None:
    cut = sample(0, ViewsConfig(global_size=64, local_size=32, local_views=0, pairs=10))
    assert cut.locals.pixels.shape == (0, 32, 32, 3)
    assert int(cut.pairs.max()) < 128
