"""Phase 1 on real photographs and on the smallest and plainest ones: properties of every record under all settings."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from skimage import data

from sohes_cli.explore.config import explore_config
from sohes_cli.explore.features import build_backbone
from sohes_cli.explore.pipeline import explore_photograph
from sohes_cli.images.reading import Photograph
from sohes_cli.runs.step_times import StepTimes
from sohes_cli.structures import LabelRecord

CROPS = {
    "astronaut": lambda: data.astronaut()[20:132, 170:290],
    "coffee": lambda: data.coffee()[100:180, 250:397],
    "chelsea": lambda: data.chelsea()[60:157, 100:200],
}
VARIANTS = {
    "paper's units": ["units.kind=patches", "merging.affinities=features"],
    "patches, boundaries": ["units.kind=patches", "merging.affinities=both"],
    "superpixels, features": ["merging.affinities=features"],
    "superpixels, boundaries": ["merging.affinities=boundaries"],
    "one threshold": ["merging.thresholds=0.8"],
    "re-clustering": [
        "reclustering.enabled=true",
        "reclustering.crop_size=64",
        "reclustering.max_crops=4",
        "reclustering.max_area=0.05",
    ],
    "guided": ["refinement.method=guided"],
    "superpixel edges": ["units.kind=patches", "merging.affinities=features", "refinement.method=superpixels"],
    "crf": ["refinement.method=crf", "pooling.max_masks=40"],
    "strict": ["pooling.max_masks=10", "pooling.nms_iou=0.5", "pooling.min_area_px=200", "hierarchy.cover=0.75"],
}
SMALL = ("features.image_size=128",)


def explore(pixels, *assignments, height=None, width=None, times=None):
    config = explore_config(assignments=[*SMALL, *assignments])
    photo = Photograph("sub/photo.jpg", pixels, height or pixels.shape[0], width or pixels.shape[1])
    return explore_photograph(photo, build_backbone(config.features, "cpu"), config, times)


@cache
def crop_record(name):
    return explore(CROPS[name]())


def decoded(record):
    masks = [coco_mask.decode(a.segmentation).astype(bool) for a in record.annotations]
    return np.stack(masks) if masks else np.zeros((0, record.height, record.width), dtype=bool)


def pairwise_ious(masks):
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    shared = flat @ flat.T
    areas = np.diag(shared)
    return shared / (areas[:, None] + areas - shared)


def check_record(record, cover=0.9):
    """Check the properties of every record at working size."""
    masks = decoded(record)
    assert [a.id for a in record.annotations] == list(range(1, len(masks) + 1))
    scores = [a.score for a in record.annotations]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= s <= 1 for s in scores)
    for a, mask, level in zip(record.annotations, masks, record.forest.levels, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = a.bbox_xywh
        assert (x, y, x + w, y + h) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert a.area == mask.sum() > 0
        assert a.level == level
        if a.parent is not None:
            parent = masks[a.parent - 1]
            assert (parent & mask).sum() >= cover * mask.sum()
            assert (parent & mask).sum() < cover * parent.sum()
    assert LabelRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize("name", CROPS)
def test_a_photograph_gives_many_distinct_masks_in_a_forest(name):
    record = crop_record(name)
    check_record(record)
    assert (record.file_name, record.height, record.width) == ("sub/photo.jpg", *CROPS[name]().shape[:2])
    masks = decoded(record)
    assert len(masks) > 20
    areas = masks.sum((1, 2))
    assert areas.min() >= 60
    assert areas.max() <= 0.9 * record.height * record.width
    ious = pairwise_ious(masks)
    assert ious[~np.eye(len(masks), dtype=bool)].max() < 0.9
    assert max(record.forest.levels) >= 2


def test_the_same_photograph_gives_the_same_record():
    assert explore(CROPS["astronaut"]()) == crop_record("astronaut")


def test_the_files_name_is_all_that_a_name_changes():
    photo = Photograph("other.png", CROPS["chelsea"](), *CROPS["chelsea"]().shape[:2])
    config = explore_config(assignments=SMALL)
    record = explore_photograph(photo, build_backbone(config.features, "cpu"), config)
    assert record.annotations == crop_record("chelsea").annotations


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_a_valid_record(variant):
    record = explore(CROPS["coffee"](), *VARIANTS[variant])
    check_record(record, cover=0.75 if variant == "strict" else 0.9)
    assert len(record.annotations) >= 3
    if variant == "strict":
        masks = decoded(record)
        assert len(masks) <= 10
        assert masks.sum((1, 2)).min() >= 200
        assert pairwise_ious(masks)[~np.eye(len(masks), dtype=bool)].max() < 0.5


def test_patches_give_masks_of_whole_patches():
    pixels = np.ascontiguousarray(CROPS["astronaut"]()[:96, :96])
    record = explore(
        pixels, "units.kind=patches", "merging.affinities=features", "features.image_size=96", "pooling.min_area_px=16"
    )
    assert len(record.annotations) > 5
    blocks = decoded(record).reshape(-1, 24, 4, 24, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()


def test_re_clustering_adds_masks_and_keeps_the_rest_of_the_pool():
    pixels = CROPS["astronaut"]()
    settings = [
        "features.backbone=color-texture",
        "pooling.max_masks=1000",
        "pooling.nms_iou=1",
        "merging.thresholds=0.9,0.5",
    ]
    before = {a.segmentation["counts"] for a in explore(pixels, *settings).annotations}
    after = {a.segmentation["counts"] for a in explore(pixels, *settings, *VARIANTS["re-clustering"]).annotations}
    assert before < after


@pytest.mark.parametrize("factor", [2, 3])
def test_a_reduced_photograph_gets_masks_at_full_size(factor):
    pixels = CROPS["chelsea"]()
    height, width = pixels.shape[0] * factor, pixels.shape[1] * factor
    record = explore(pixels, height=height, width=width)
    small = crop_record("chelsea")
    assert (record.height, record.width) == (height, width)
    np.testing.assert_array_equal(decoded(record), decoded(small).repeat(factor, 1).repeat(factor, 2))
    for a, b in zip(record.annotations, small.annotations, strict=True):
        assert (a.score, a.parent, a.level) == (b.score, b.parent, b.level)
        assert a.area == factor**2 * b.area
        assert a.bbox_xywh == tuple(factor * v for v in b.bbox_xywh)


def test_a_full_size_that_is_no_multiple_keeps_every_mask():
    pixels = CROPS["chelsea"]()
    record = explore(pixels, height=pixels.shape[0] + 31, width=2 * pixels.shape[1] + 7)
    masks = decoded(record)
    assert masks.shape[1:] == (pixels.shape[0] + 31, 2 * pixels.shape[1] + 7)
    assert record.forest.parents == crop_record("chelsea").forest.parents
    assert masks.any((1, 2)).all()


@pytest.mark.parametrize(
    "variant", ["one threshold", "paper's units", "superpixels, features", "superpixels, boundaries"]
)
@pytest.mark.parametrize("color", [(0, 0, 0), (90, 200, 30), (255, 255, 255)])
def test_a_uniform_image_has_no_masks(variant, color):
    assert explore(np.full((50, 64, 3), color, np.uint8), *VARIANTS[variant]) == LabelRecord("sub/photo.jpg", 50, 64)


@pytest.mark.parametrize(
    "variant", ["paper's units", "superpixels, features", "superpixels, boundaries", "re-clustering", "guided", "crf"]
)
@pytest.mark.parametrize("shape", [(1, 1), (1, 23), (19, 1), (3, 2), (7, 7), (4, 150)])
def test_the_smallest_images_work(variant, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    record = explore(pixels, *VARIANTS[variant], "pooling.min_area_px=1", "features.image_size=32")
    check_record(record)
    assert (record.height, record.width) == shape


def test_two_colors_are_two_masks():
    pixels = np.full((60, 80, 3), (40, 90, 160), np.uint8)
    pixels[15:45, 20:50] = (200, 60, 40)
    record = explore(pixels)
    square = np.zeros((60, 80), dtype=bool)
    square[15:45, 20:50] = True
    found = decoded(record)
    for mask in (square, ~square):
        assert max((mask & f).sum() / (mask | f).sum() for f in found) > 0.95


def test_a_vit_with_random_weights_runs():
    pixels = CROPS["astronaut"]()
    settings = [
        "features.backbone=vit_tiny_patch16_224",
        "features.weights=random",
        "units.kind=patches",
        "merging.affinities=features",
    ]
    record = explore(pixels, *settings, "merging.thresholds=0.99,0.97,0.95,0.9,0.8")
    check_record(record)
    assert record.annotations
    assert explore(pixels, *settings, "merging.thresholds=0.99,0.97,0.95,0.9,0.8") == record


def test_the_clock_names_the_steps_that_ran():
    times = StepTimes()
    explore(CROPS["coffee"](), times=times)
    assert set(times.seconds) == {"features", "units", "merging", "pooling", "hierarchy", "encoding"}
    explore(CROPS["coffee"](), *VARIANTS["re-clustering"], "refinement.method=guided", times=times)
    assert set(times.seconds) > {"re-clustering", "refinement"}
    assert all(seconds > 0 for seconds in times.seconds.values())


def test_clocks_add_up():
    one, other = StepTimes({"a": 1.0, "b": 2.0}), StepTimes({"b": 0.5, "c": 4.0})
    one.add(other)
    assert one.seconds == {"a": 1.0, "b": 2.5, "c": 4.0}
    with pytest.raises(ZeroDivisionError), one.step("d"):
        raise ZeroDivisionError
    assert one.seconds["d"] >= 0
