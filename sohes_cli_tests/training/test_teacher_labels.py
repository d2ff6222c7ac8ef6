"""Labels of the teacher: positions of masks in the student's view, and selection of labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from criterion_cases import pack
from segment_cases import output_of

from sohes_cli.data.batch import WeakBatch
from sohes_cli.data.config import DataConfig
from sohes_cli.data.jitter import Crop, draw_crop, full_crop
from sohes_cli.errors import WeightsError
from sohes_cli.inference.postprocess import upsample_masks
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.resample import resample_runs
from sohes_cli.masks.segmentations import parse_segmentations
from sohes_cli.model.ancestor_head import AncestorHead
from sohes_cli.model.output import Output
from sohes_cli.training.correct_config import CorrectConfig, TeacherConfig
from sohes_cli.training.teacher_labels import TeacherLabels, min_scores, move_masks, teacher_labels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from sohes_kernels import RunMasks

    Shape = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    """Signed distance of points (y, x) of a photograph to the edge of a shape in pixels, negative outside."""

CLEAR_PX = 1e-3  # from an edge: float32 keeps distances of up to 1,000 pixels to 1e-4
DATA = DataConfig(image_size=64, scale=(0.3, 2.0), min_area_px=4, min_visible=0.0)
STEEP = 4.0  # logits for a pixel


def centers(crop: Crop, step: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the photograph's rows and columns of the centers of a view's cells of `step` pixels."""
    y, x = ((np.arange(-(-side // step)) + 0.5) * step for side in (crop.height, crop.width))
    x = crop.width - x if crop.flipped else x
    return (crop.top + y) * crop.source_height / crop.scaled_height, (
        crop.left + x
    ) * crop.source_width / crop.scaled_width


def logits_of(shapes: list[Shape], crop: Crop) -> NDArray[np.float32]:
    """Make the logits of a perfect teacher for shapes in its view, at stride 4."""
    rows, columns = centers(crop, 4)
    return np.stack([STEEP * shape(rows[:, None], columns) for shape in shapes]).astype(np.float32)


def disc(y: float, x: float, radius: float) -> Shape:
    return lambda rows, columns: radius - np.hypot(rows - y, columns - x)


def ring(y: float, x: float, radius: float, inner: float) -> Shape:
    return lambda rows, columns: np.minimum(
        radius - np.hypot(rows - y, columns - x), np.hypot(rows - y, columns - x) - inner
    )


def box(top: float, left: float, bottom: float, right: float) -> Shape:
    return lambda rows, columns: np.minimum(
        np.minimum(rows - top, bottom - rows), np.minimum(columns - left, right - columns)
    )


def half_plane(y: float, x: float, angle: float) -> Shape:
    return lambda rows, columns: math.sin(angle) * (rows - y) + math.cos(angle) * (columns - x)


def drawn_crop(height: int, width: int, rng: np.random.Generator) -> Crop:
    return draw_crop(height, width, DATA, rng)


def whole_view(height: int, width: int, flipped: bool = False, image_size: int = 64) -> Crop:
    return replace(full_crop(height, width, image_size), flipped=flipped)


def unpacked(masks: PackedMasks) -> NDArray[np.bool_]:
    return np.stack([*masks]) if len(masks) else np.zeros((0, masks.height, masks.width), np.bool_)


def decoded(bits: torch.Tensor, crop: Crop) -> NDArray[np.bool_]:
    """Unpack labels to masks of the student's view, bool [N, H, W]."""
    pixels = np.unpackbits(bits.numpy(), axis=1, bitorder="little")[:, : crop.height * crop.width]
    return pixels.reshape(-1, crop.width, crop.height).transpose(0, 2, 1).astype(np.bool_)


def runs_of(masks: NDArray[np.bool_]) -> RunMasks:
    height, width = masks.shape[1:]
    return parse_segmentations(PackedMasks.from_masks(masks).encode(height, width), height, width)[0]


def iou_of(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((mask & other).sum() / (mask | other).sum())


# Score thresholds


def tau(area: float, config: TeacherConfig) -> float:
    """Compute the formula of `TeacherConfig` for one mask."""
    share = (math.log(area) - math.log(config.area_small)) / (math.log(config.area_large) - math.log(config.area_small))
    return config.score_small + (config.score_large - config.score_small) * min(max(share, 0.0), 1.0)


@pytest.mark.parametrize(
    "config", [TeacherConfig(), TeacherConfig(score_small=0.8, score_large=0.2, area_small=0.01, area_large=0.5)]
)
def test_the_minimum_score_is_that_of_the_formula(config: TeacherConfig) -> None:
    areas = np.exp(np.random.default_rng(0).uniform(math.log(1e-6), 0, 200))
    np.testing.assert_allclose(min_scores(areas, config), [tau(area, config) for area in areas], rtol=1e-12)


def test_the_minimum_score_at_its_corners() -> None:
    config = TeacherConfig()
    small, large = config.area_small, config.area_large
    areas = np.array([0.0, 1e-9, small / 2, small, math.sqrt(small * large), large, 2 * large, 1.0])
    with np.errstate(all="raise"):  # no logarithm of 0
        found = min_scores(areas, config)
    np.testing.assert_allclose(found, [0.4, 0.4, 0.4, 0.4, 0.55, 0.7, 0.7, 0.7], rtol=1e-12)
    assert (np.diff(min_scores(np.linspace(small, large, 50), config)) > 0).all()
    assert min_scores(np.zeros(0), config).shape == (0,)


def test_a_fixed_minimum_score() -> None:
    config = TeacherConfig(threshold="fixed", score_fixed=0.35)
    assert min_scores(np.array([1e-9, 0.001, 1.0]), config).tolist() == [0.35, 0.35, 0.35]


# Positions of masks


@pytest.mark.parametrize("seed", range(60))
def test_a_straight_edge_lands_exactly(seed: int) -> None:
    """Linear logits are interpolated exactly, and repeat beyond the border of the teacher's view."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 400, 2))
    whole = whole_view(height, width, flipped=bool(rng.random() < 0.5))
    source, target = whole if seed % 2 else drawn_crop(height, width, rng), drawn_crop(height, width, rng)
    rows, columns = centers(target)
    aims = [(rng.choice(rows), rng.choice(columns)) for _ in range(12)]  # edges in the student's view
    shapes = [half_plane(y, x, angle) for (y, x), angle in zip(aims, rng.uniform(0, 2 * np.pi, 12), strict=True)]
    shapes += [half_plane(*aims[0], quarter * np.pi / 2) for quarter in range(4)]
    cells = centers(source, 4)
    rows, columns = rows.clip(cells[0].min(), cells[0].max()), columns.clip(cells[1].min(), cells[1].max())
    expected = np.stack([shape(rows[:, None], columns) for shape in shapes])
    found = move_masks(logits_of(shapes, source), source, target)
    assert (found.height, found.width) == (target.height, target.width)
    is_clear = np.abs(expected) > CLEAR_PX
    assert is_clear.mean() > 0.8
    np.testing.assert_array_equal(unpacked(found)[is_clear], (expected > 0)[is_clear])


@pytest.mark.parametrize("seed", range(20))
def test_moving_to_the_same_view_is_upsampling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(5, 300, 2))
    for view in (whole_view(height, width), whole_view(height, width, flipped=True), drawn_crop(height, width, rng)):
        logits = rng.normal(0, 1, (5, -(-view.height // 4), -(-view.width // 4))).astype(np.float32)
        expected = upsample_masks(logits, (view.height, view.width), view.height, view.width)
        np.testing.assert_array_equal(move_masks(logits, view, view).bits, expected.bits)


@pytest.mark.parametrize("seed", range(20))
def test_mirrored_views_give_the_same_masks(seed: int) -> None:
    """The width is a multiple of the cells, so that the mirrored view has mirrored cells."""
    rng = np.random.default_rng(seed)
    view = whole_view(48 + seed, 64)
    view = replace(view, width=60, left=seed % 5, flipped=seed % 3 == 0)
    target = drawn_crop(48 + seed, 64, rng)
    logits = rng.normal(0, 1, (5, -(-view.height // 4), 15)).astype(np.float32)
    mirrored = move_masks(np.ascontiguousarray(logits[:, :, ::-1]), replace(view, flipped=not view.flipped), target)
    found = move_masks(logits, view, target)
    assert 0 < found.areas().sum() < 5 * target.height * target.width
    np.testing.assert_array_equal(mirrored.bits, found.bits)
    flipped = move_masks(logits, view, replace(target, flipped=not target.flipped))
    np.testing.assert_array_equal(unpacked(flipped)[:, :, ::-1], unpacked(found))


@pytest.mark.parametrize("seed", range(12))
def test_shapes_land_where_labels_of_the_photograph_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = 240 + 7 * seed, 320 - 9 * seed
    source, target = whole_view(height, width, flipped=seed % 2 == 0, image_size=128), drawn_crop(height, width, rng)
    shapes = [disc(90, 110, 70), disc(150, 60, 30), ring(120, 100, 90, 45), box(20, 30, 150, 200), box(100, 5, 235, 90)]
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    masks = np.stack([shape(rows[:, None], columns) > 0 for shape in shapes])
    cropped = resample_runs(runs_of(masks), target.rows, target.columns)
    expected = decoded(torch.from_numpy(PackedMasks.from_runs(cropped).to_bytes()), target)
    found = unpacked(move_masks(logits_of(shapes, source), source, target))
    seen = [i for i in range(len(shapes)) if expected[i].sum() > 100]
    assert len(seen) >= 1
    assert min(iou_of(found[i], expected[i]) for i in seen) > 0.9


# Outputs of a teacher

SIDE = 96  # of the photograph
VIEW = full_crop(SIDE, SIDE, 128)  # the teacher's; a cell is 3 pixels of the photograph
EVERY = CorrectConfig(data=replace(DATA, min_area_px=1), teacher=TeacherConfig(threshold="fixed", score_fixed=0.3))
GEOMETRY, HEAD = EVERY, replace(EVERY, teacher=replace(EVERY.teacher, hierarchy="head"))


def weak_of(*views: tuple[Crop, Crop]) -> WeakBatch:
    """Make a batch of (teacher, student) views; pixels are not used."""
    height, width = (max(getattr(crop, side) for crop, _ in views) for side in ("height", "width"))
    pixels = torch.zeros(len(views), height, width, 3, dtype=torch.uint8)
    return WeakBatch(
        pixels, tuple((c.height, c.width) for c, _ in views), tuple(c for c, _ in views), tuple(s for _, s in views)
    )


def head_of(pairs: list[tuple[int, int]], queries: int) -> AncestorHead:
    """Make a head that predicts exactly these (ancestor, descendant) pairs of queries of `output_of`."""
    said = torch.full((queries, queries), -9.0)
    for ancestor, node in pairs:
        said[ancestor, node] = 9.0
    head = AncestorHead(queries)
    with torch.no_grad():
        head.w1.copy_(said * math.sqrt(queries))
        head.w2.copy_(torch.eye(queries))
    return head


def labeled(
    shapes: list[Shape],
    entity: list[float],
    config: CorrectConfig = EVERY,
    student: Crop = VIEW,
    teacher: Crop = VIEW,
    pairs: tuple[tuple[int, int], ...] = (),
) -> TeacherLabels:
    """Make the labels of one photograph from shapes in the teacher's view."""
    output, head = output_of(logits_of(shapes, teacher), entity), head_of(list(pairs), len(shapes))
    (found,) = teacher_labels(output, head, weak_of((teacher, student)), config)
    return found


def shown(shapes: list[Shape], student: Crop, teacher: Crop = VIEW) -> torch.Tensor:
    """Pack the shapes as seen in the student's view."""
    return pack(torch.from_numpy(unpacked(move_masks(logits_of(shapes, teacher), teacher, student))))


def scores_of(logits: NDArray[np.float32], entity: list[float]) -> NDArray[np.float64]:
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return np.array([e * p[m > 0].mean() for e, p, m in zip(entity, probabilities, logits, strict=True)])


# Selection of labels


@pytest.mark.parametrize("threshold", ["area", "fixed"])
@pytest.mark.parametrize("zoom", [1, 2])
def test_masks_are_accepted_by_score_and_share_of_the_photograph(threshold: str, zoom: int) -> None:
    """Also if the teacher's view is an enlarged part of the photograph."""
    rng = np.random.default_rng(zoom)
    teacher = Crop(SIDE, SIDE, 128 * zoom, 128 * zoom, 0, 0, 128, 128)
    shapes = [disc(*rng.uniform(10 / zoom, 80 / zoom, 2), rng.uniform(1.5, 16) / zoom) for _ in range(60)]
    entity = rng.uniform(0.3, 0.8, 60).tolist()
    settings = TeacherConfig(threshold=threshold, area_small=0.005, area_large=0.03, nms_iou=1.0)
    logits = logits_of(shapes, teacher)
    areas = upsample_masks(logits, (128, 128), 128, 128).areas() / (128 * zoom) ** 2
    scores = scores_of(logits, entity)
    needed = [tau(max(area, 1e-9), settings) if threshold == "area" else 0.5 for area in areas]
    fits = np.flatnonzero((areas > 0) & (scores >= needed))
    order = fits[np.argsort(-scores[fits])]
    assert 10 < len(order) < 50
    found = labeled(shapes, entity, replace(EVERY, teacher=settings), teacher=teacher, student=teacher)
    np.testing.assert_allclose(found.scores, scores[order], rtol=1e-5)  # scores are float32
    np.testing.assert_array_equal(found.areas, areas[order])
    assert found.scores.dtype == found.areas.dtype == np.float64
    assert torch.equal(found.masks, shown([shapes[i] for i in order], teacher, teacher))


def test_small_masks_are_accepted_at_scores_at_which_large_ones_are_not() -> None:
    config = replace(EVERY, teacher=TeacherConfig(area_small=0.01, area_large=0.1))
    found = labeled([disc(20, 20, 4), disc(50, 60, 30)], [0.6, 0.6], config)
    assert torch.equal(found.masks, shown([disc(20, 20, 4)], VIEW))
    assert found.candidates == 1
    assert len(labeled([disc(20, 20, 4), disc(50, 60, 30)], [0.6, 0.8], config).masks) == 2


def test_of_near_duplicates_the_best_is_a_label() -> None:
    shapes = [disc(40, 40, 20), disc(40.5, 40, 20), disc(40, 40.5, 20.2), disc(40, 70, 20)]
    found = labeled(shapes, [0.6, 0.9, 0.7, 0.8])
    assert torch.equal(found.masks, shown([shapes[1], shapes[3]], VIEW))
    assert len(found.scores) == len(found.areas) == 2
    assert found.candidates == 4
    everything = labeled(shapes, [0.6, 0.9, 0.7, 0.8], replace(EVERY, teacher=replace(EVERY.teacher, nms_iou=1.0)))
    assert torch.equal(everything.masks, shown([shapes[i] for i in (1, 3, 2, 0)], VIEW))


@pytest.mark.parametrize("config", [GEOMETRY, HEAD])
def test_nothing_accepted_gives_no_labels(config: CorrectConfig) -> None:
    student = Crop(SIDE, SIDE, 60, 60, 3, 4, 50, 51)
    for shapes, entity in (([disc(40, 40, 20)] * 2, [0.2, 0.1]), ([disc(40, 40, -9)] * 2, [0.9, 0.9])):
        found = labeled(shapes, entity, config, student)
        assert (found.masks.shape, found.masks.dtype) == ((0, 319), torch.uint8)  # ceil(50 * 51 / 8)
        assert (found.parents.shape, found.parents.dtype) == ((0,), torch.int64)
        assert found.scores.shape == found.areas.shape == (0,)
        assert found.scores.dtype == found.areas.dtype == np.float64


# The student's view

LEFT, RIGHT = (Crop(SIDE, SIDE, SIDE, SIDE, 0, left, SIDE, SIDE // 2) for left in (0, SIDE // 2))


@pytest.mark.parametrize("config", [GEOMETRY, HEAD])
def test_labels_beyond_the_students_view_are_left_out(config: CorrectConfig) -> None:
    left, right = box(10, 8, 80, 40), box(10, 56, 80, 90)
    for student, inside in ((LEFT, left), (RIGHT, right), (replace(RIGHT, flipped=True), right)):
        found = labeled([left, right], [0.9, 0.8], config, student)
        assert torch.equal(found.masks, shown([inside], student))
        assert found.parents.tolist() == [-1]
        assert len(found.scores) == len(found.areas) == 2  # all accepted masks
    outside = labeled([left], [0.9], config, RIGHT)
    assert outside.masks.shape == (0, SIDE * SIDE // 16)
    assert (len(outside.parents), len(outside.scores)) == (0, 1)


@pytest.mark.parametrize("scaled", [48, 96, 192])
def test_labels_of_which_too_little_is_seen_are_left_out(scaled: int) -> None:
    """At any scale of the student a quarter of the first label is visible, and all of the second."""
    student = Crop(SIDE, SIDE, scaled, scaled, 0, scaled // 2, scaled, scaled // 2)
    shapes = [box(10, 12, 34, 60), box(50, 57, 80, 87)]
    for least, kept in ((0.0, 2), (0.2, 2), (0.3, 1), (0.9, 1)):
        config = replace(EVERY, data=replace(EVERY.data, min_visible=least))
        found = labeled(shapes, [0.9, 0.8], config, student)
        assert torch.equal(found.masks, shown(shapes[2 - kept :], student))


def test_labels_of_too_few_pixels_are_left_out() -> None:
    student = full_crop(SIDE, SIDE, 64)
    shapes = [disc(30, 30, 5), disc(60, 60, 15)]  # best first
    pixels = move_masks(logits_of(shapes, VIEW), VIEW, student).areas().tolist()
    for least, kept in ((1, 2), (pixels[0], 2), (pixels[0] + 1, 1), (pixels[1], 1), (pixels[1] + 1, 0)):
        found = labeled(shapes, [0.9, 0.5], replace(EVERY, data=replace(EVERY.data, min_area_px=least)), student)
        assert torch.equal(found.masks, shown(shapes, student)[2 - kept :])
        assert len(found.scores) == 2


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 13), (33, 31), (64, 3), (1, 40), (40, 1), (1, 1)])
def test_bits_are_packed_as_those_of_labels(size: tuple[int, int]) -> None:
    """Sizes with full and partly filled last bytes and words."""
    student = Crop(SIDE, SIDE, 48, 48, 4, 6, *size, flipped=True)
    shapes = [disc(30, 40, 28), box(2, 2, 94, 94), box(9, 12, 40, 60), disc(9, 14, 6)]
    found = labeled(shapes, [0.9, 0.8, 0.7, 0.6], replace(EVERY, teacher=replace(EVERY.teacher, nms_iou=1.0)), student)
    masks = unpacked(move_masks(logits_of(shapes, VIEW), VIEW, student))
    masks = masks[masks.any((1, 2))]
    assert len(masks) >= 1
    assert found.masks.shape == (len(masks), -(-size[0] * size[1] // 8))
    assert torch.equal(found.masks, pack(torch.from_numpy(masks)))
    assert np.array_equal(found.masks.numpy(), PackedMasks.from_runs(runs_of(masks)).to_bytes())
    found.masks.add_(1)  # memory is not shared


# The forest

NESTED = [disc(48, 48, 40), disc(48, 44, 28), disc(48, 40, 14), disc(12, 84, 9)]


def test_the_forest_is_that_of_the_masks_or_of_the_head() -> None:
    entity = [0.7, 0.6, 0.9, 0.8]  # so the order of labels is 2, 3, 0, 1
    assert labeled(NESTED, entity, GEOMETRY).parents.tolist() == [3, -1, -1, 2]
    assert labeled(NESTED, entity, GEOMETRY, pairs=((0, 2), (0, 3))).parents.tolist() == [3, -1, -1, 2]
    assert labeled(NESTED, entity, HEAD).parents.tolist() == [-1, -1, -1, -1]
    assert labeled(NESTED, entity, HEAD, pairs=((0, 2),)).parents.tolist() == [2, -1, -1, -1]
    assert labeled(NESTED, entity, HEAD, pairs=((0, 2), (0, 1), (1, 2))).parents.tolist() == [3, -1, -1, 2]
    contradicted = labeled(NESTED, entity, HEAD, pairs=((0, 3), (2, 0)))  # by the masks
    assert contradicted.parents.tolist() == [-1, -1, -1, -1]
    found = labeled(NESTED, entity, HEAD, pairs=((0, 2),))
    assert torch.equal(found.masks, shown([NESTED[i] for i in (2, 3, 0, 1)], VIEW))
    assert found.parents.dtype == torch.int64


@pytest.mark.parametrize("config", [GEOMETRY, HEAD])
def test_parts_of_a_label_that_is_left_out_belong_to_its_own_whole(config: CorrectConfig) -> None:
    """A fifth of the second of three nested boxes is visible, over half of the others, nothing of the fourth."""
    shapes = [box(4, 22, 92, 92), box(20, 25, 76, 54), box(30, 47, 66, 53), box(4, 3, 92, 17)]
    pairs = ((0, 1), (0, 2), (1, 2))
    config = replace(config, data=replace(config.data, min_visible=0.3))
    for entity, parents in (([0.6, 0.9, 0.7, 0.8], [1, -1]), ([0.8, 0.6, 0.7, 0.9], [-1, 0])):
        assert labeled(shapes, entity, config, VIEW, pairs=pairs).parents.tolist().count(-1) == 2
        found = labeled(shapes, entity, config, RIGHT, pairs=pairs)
        assert found.parents.tolist() == parents
        wanted = [shapes[2], shapes[0]] if parents == [1, -1] else [shapes[0], shapes[2]]
        assert torch.equal(found.masks, shown(wanted, RIGHT))
        assert len(found.scores) == 4
    middle = labeled([shapes[0], shapes[1]], [0.9, 0.8], config, RIGHT, pairs=((0, 1),))
    assert torch.equal(middle.masks, shown(shapes[:1], RIGHT))  # the other one was left out


def test_the_best_are_taken_with_their_ancestors() -> None:
    shapes = [disc(30, 30, 26), disc(30, 30, 12), disc(72, 20, 12), disc(20, 76, 12), disc(72, 72, 16)]
    entity = [0.5, 0.9, 0.8, 0.7, 0.6]
    for most, taken, parents in (
        (1, [2], [-1]),  # the best one needs its whole
        (2, [1, 0], [1, -1]),
        (3, [1, 2, 0], [2, -1, -1]),
        (4, [1, 2, 3, 0], [3, -1, -1, -1]),
        (5, [1, 2, 3, 4, 0], [4, -1, -1, -1, -1]),
    ):
        found = labeled(shapes, entity, replace(EVERY, data=replace(EVERY.data, max_labels=most)))
        assert torch.equal(found.masks, shown([shapes[i] for i in taken], VIEW))
        assert found.parents.tolist() == parents
        assert len(found.scores) == len(found.areas) == 5


# Views and batches


@pytest.mark.parametrize("config", [GEOMETRY, HEAD])
def test_a_mirrored_teachers_view_gives_the_same_labels(config: CorrectConfig) -> None:
    pairs, entity = ((0, 1), (1, 2)), [0.7, 0.6, 0.9, 0.8]
    for student in (VIEW, RIGHT, Crop(SIDE, SIDE, 150, 150, 20, 30, 64, 61, flipped=True)):
        plain, mirrored = (
            labeled(NESTED, entity, config, student, replace(VIEW, flipped=flipped), pairs=pairs)
            for flipped in (False, True)
        )
        assert len(plain.masks) >= 3
        assert torch.equal(mirrored.masks, plain.masks)
        assert torch.equal(mirrored.parents, plain.parents)
        np.testing.assert_allclose(mirrored.scores, plain.scores, rtol=1e-6)  # sums in another order
        np.testing.assert_array_equal(mirrored.areas, plain.areas)


@pytest.mark.parametrize("config", [GEOMETRY, HEAD])
def test_labels_do_not_depend_on_the_other_photographs(config: CorrectConfig) -> None:
    """The padding of the batch is full of masks."""
    rng = np.random.default_rng(0)
    sizes = [(96, 96), (50, 120), (130, 37), (70, 71)]
    views = [(whole_view(*size, flipped=bool(i % 2)), drawn_crop(*size, rng)) for i, size in enumerate(sizes)]
    outputs, shapes = [], [disc(25, 20, 18), disc(25, 18, 9), disc(40, 25, 8), disc(20, 30, 5)]
    for teacher, _ in views:
        outputs.append(output_of(logits_of(shapes, teacher), rng.uniform(0.3, 0.9, 4).tolist()))
    maps = torch.full((len(views), 4, 16, 16), 50.0)
    for canvas, output in zip(maps, outputs, strict=True):
        canvas[:, : output.mask_features.shape[2], : output.mask_features.shape[3]] = output.mask_features[0]
    together = Output(*(torch.cat(values, 1) for values in list(zip(*outputs, strict=True))[:3]), maps)
    head = head_of([(0, 1)], 4)
    found = teacher_labels(together, head, weak_of(*views), config)
    assert len(found) == len(views)
    for labels, output, pair in zip(found, outputs, views, strict=True):
        (alone,) = teacher_labels(output, head, weak_of(pair), config)
        assert torch.equal(labels.masks, alone.masks)
        assert torch.equal(labels.parents, alone.parents)
        np.testing.assert_array_equal(labels.scores, alone.scores)
        np.testing.assert_array_equal(labels.areas, alone.areas)
    assert min(len(labels.scores) for labels in found) >= 2
    assert sum(len(labels.masks) for labels in found) >= 6


def test_an_output_of_16_bits_gives_nearly_the_same_labels() -> None:
    output, head = output_of(logits_of(NESTED, VIEW), [0.7, 0.6, 0.9, 0.8]), head_of([(0, 1), (1, 2)], 4)
    weak = weak_of((VIEW, RIGHT))
    (full,), (half,) = (
        teacher_labels(o, head, weak, HEAD) for o in (output, Output(*(value.bfloat16() for value in output)))
    )
    assert torch.equal(half.parents, full.parents)
    assert all(iou_of(a, b) > 0.95 for a, b in zip(decoded(half.masks, RIGHT), decoded(full.masks, RIGHT), strict=True))
    np.testing.assert_allclose(half.scores, full.scores, rtol=2**-7)  # bfloat16 has 8 bits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["pred_logits", "mask_embeddings", "mask_features"])
def test_numbers_that_are_not_finite_are_an_error(field: str, value: float) -> None:
    output = output_of(logits_of(NESTED, VIEW), [0.7, 0.6, 0.9, 0.8])
    broken = output._replace(**{field: torch.full_like(getattr(output, field), value)})
    with pytest.raises(WeightsError, match="not finite"):
        teacher_labels(broken, head_of([], 4), weak_of((VIEW, VIEW)), EVERY)
