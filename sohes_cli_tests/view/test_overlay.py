"""Overlay: masks tinted in their colors, parts above wholes, dark edges, the rest of the photograph untouched."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from label_cases import annotate_box

from sohes_cli.errors import StoreError
from sohes_cli.structures import Annotation, LabelRecord
from sohes_cli.view.overlay import MAX_PICTURE_SIDE, overlay, reduced, reduced_mask
from sohes_cli.view.selection import mask_colors

H, W = 60, 90


annotate = partial(annotate_box, size=(H, W))


@pytest.fixture
def record():
    whole = annotate((5, 5, 50, 50), 1)
    part = annotate((10, 10, 30, 30), 2, parent=1)
    detail = annotate((15, 15, 12, 12), 3, parent=2)
    other = annotate((60, 20, 25, 25), 4)
    return LabelRecord("a.jpg", H, W, (detail, part, whole, other))


@pytest.fixture
def photograph():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


def tint(pixel, color):
    return pixel + 0.55 * (np.array(color, float) - pixel)


def test_inside_each_mask_shows_the_color_of_the_smallest(record, photograph):
    shown = overlay(photograph, record, 10)
    colors = {a.id: color for a, color in zip(record.annotations, mask_colors(record), strict=True)}
    for annotation_id, (y, x) in {1: (50, 30), 2: (35, 30), 3: (20, 20), 4: (32, 72)}.items():
        assert np.abs(shown[y, x] - tint(photograph[y, x], colors[annotation_id])).max() <= 1


def test_pixels_outside_of_all_masks_stay(record, photograph):
    shown = overlay(photograph, record, 10)
    outside = np.ones((H, W), bool)
    outside[5:55, 5:55] = outside[20:45, 60:85] = False
    assert (shown[outside] == photograph[outside]).all()
    assert (shown[~outside] != photograph[~outside]).any(axis=1).mean() > 0.9


def test_boundaries_are_darker_shades_of_the_color(record):
    shown = overlay(np.full((H, W, 3), 255, np.uint8), record, 10)
    root = np.array(mask_colors(record)[2], float)
    for y, x in [(5, 30), (6, 30), (54, 30), (30, 5), (30, 54)]:
        assert np.abs(shown[y, x] - 0.5 * root).max() <= 1
    assert shown[7, 30].sum() > shown[6, 30].sum()
    part = np.array(mask_colors(record)[1], float)
    assert np.abs(shown[10, 20] - 0.5 * part).max() <= 1
    assert shown[11, 20].sum() > shown[10, 20].sum()


def test_the_border_of_the_photograph_is_no_boundary():
    record = LabelRecord("a.jpg", H, W, (annotate((0, 0, W, H), 1),))
    shown = overlay(np.full((H, W, 3), 128, np.uint8), record, 1)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 1


def test_a_small_root_lies_on_top_of_a_larger_tree(photograph):
    large, part = annotate((0, 0, 60, 60), 1), annotate((5, 5, 50, 50), 2, parent=1)
    small = annotate((20, 20, 20, 20), 3)
    record = LabelRecord("a.jpg", H, W, (small, part, large))
    color = mask_colors(record)[0]
    assert np.abs(overlay(photograph, record, 3)[30, 30] - tint(photograph[30, 30], color)).max() <= 1


def test_masks_beyond_the_limit_are_not_painted(photograph):
    best, worst = annotate((5, 5, 20, 20), 1, score=0.9), annotate((50, 30, 20, 20), 2, score=0.1)
    shown = overlay(photograph, LabelRecord("a.jpg", H, W, (worst, best)), 1)
    assert (shown[30:50, 50:70] == photograph[30:50, 50:70]).all()
    assert (shown[5:25, 5:25] != photograph[5:25, 5:25]).any()


def test_the_same_input_gives_the_same_picture_and_is_not_changed(record, photograph):
    before = photograph.copy()
    assert (overlay(photograph, record, 10) == overlay(photograph, record, 10)).all()
    assert (photograph == before).all()


def test_a_record_without_masks_shows_the_photograph(photograph):
    shown = overlay(photograph, LabelRecord("a.jpg", H, W), 10)
    assert shown.dtype == np.uint8
    assert (shown == photograph).all()


def test_a_huge_photograph_is_shown_reduced():
    size = (700, 4000)
    record = LabelRecord(
        "a.jpg", *size, (annotate((1000, 100, 2000, 500), 1, size=size), annotate((3999, 699, 1, 1), 2, size=size))
    )
    shown = overlay(np.full((*size, 3), 200, np.uint8), record, 10)
    assert shown.shape == (280, MAX_PICTURE_SIDE, 3)
    assert (shown[140, 800] != 200).any()
    assert (shown[5, 5] == 200).all()
    assert (shown[-1, -1] != 200).any(), "a mask of one pixel vanished"


def test_a_photograph_read_at_reduced_size_gets_its_masks_in_place():
    size = (600, 900)
    record = LabelRecord("a.jpg", *size, (annotate((300, 200, 300, 200), 1, size=size),))
    changed = (overlay(np.full((60, 90, 3), 200, np.uint8), record, 1) != 200).any(axis=2)
    assert changed.sum() == 20 * 30
    assert changed[20:40, 30:60].all()


def test_reducing_keeps_small_pictures_and_proportions(photograph):
    assert reduced(photograph, 90) is photograph
    assert reduced(photograph, 45).shape == (30, 45, 3)
    assert reduced(np.zeros((1, 5000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_a_damaged_mask_is_named(photograph):
    damaged = Annotation(7, {"size": [H, W], "counts": "é"}, 5, (0, 0, 1, 5), 0.5)
    record = LabelRecord("sub/a.jpg", H, W, (damaged,))
    with pytest.raises(StoreError, match=r"sub/a\.jpg is corrupt: annotation 7"):
        overlay(photograph, record, 10)
    with pytest.raises(StoreError):
        reduced_mask(record, damaged, 5, 5)
