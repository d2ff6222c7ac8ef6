"""Forest picture: a tile per shown mask, outlined in its color, the photograph inside and faded around."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from label_cases import annotate_box

from sohes_cli.errors import StoreError
from sohes_cli.structures import Annotation, LabelRecord
from sohes_cli.view.forest_layout import TILE_H, TILE_W
from sohes_cli.view.forest_picture import draw_forest
from sohes_cli.view.selection import mask_colors

H, W = 120, 160
GRAY = 90


annotate = partial(annotate_box, size=(H, W))


RECORD = LabelRecord(
    "a.jpg",
    H,
    W,
    (
        annotate((10, 10, 100, 90), 1, score=0.9),
        annotate((20, 20, 40, 30), 2, parent=1),
        annotate((70, 20, 30, 70), 3, parent=1),
        annotate((120, 30, 30, 30), 4, score=0.1),
    ),
)


@pytest.fixture
def photograph():
    return np.full((H, W, 3), GRAY, np.uint8)


def pixels_of(picture, color):
    return int((picture == np.array(color, np.uint8)).all(axis=2).sum())


def test_every_shown_mask_is_outlined_in_its_color(photograph):
    picture = draw_forest(photograph, RECORD, 10)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    for color in mask_colors(RECORD):
        assert pixels_of(picture, color) >= TILE_H


def test_the_inside_is_the_photograph_and_the_outside_is_faded(photograph):
    picture = draw_forest(photograph, RECORD, 10)
    faded = round(GRAY + 0.8 * (255 - GRAY))
    inside, outside = pixels_of(picture, (GRAY,) * 3), pixels_of(picture, (faded,) * 3)
    tiles = 4 * TILE_H * TILE_W
    assert 0.1 * tiles < inside < tiles
    assert 0.1 * tiles < outside < tiles


def test_lines_join_parts_to_their_whole(photograph):
    apart = LabelRecord("a.jpg", H, W, tuple(annotate(a.bbox_xywh, a.id, None, a.score) for a in RECORD.annotations))
    root_color = mask_colors(RECORD)[0]
    assert mask_colors(apart)[0] == root_color
    joined, alone = (pixels_of(draw_forest(photograph, record, 10), root_color) for record in (RECORD, apart))
    assert joined > alone + 2 * 34


def test_masks_beyond_the_limit_are_left_out(photograph):
    picture = draw_forest(photograph, RECORD, 1)
    assert pixels_of(picture, mask_colors(RECORD)[3]) == 0
    assert picture.size < draw_forest(photograph, RECORD, 10).size


def test_the_same_record_gives_the_same_picture(photograph):
    assert (draw_forest(photograph, RECORD, 10) == draw_forest(photograph, RECORD, 10)).all()


def test_the_caption_changes_with_the_score(photograph):
    other = LabelRecord("a.jpg", H, W, (annotate((10, 10, 100, 90), 1, score=0.8),))
    one = LabelRecord("a.jpg", H, W, (annotate((10, 10, 100, 90), 1, score=0.3),))
    first, second = draw_forest(photograph, one, 10), draw_forest(photograph, other, 10)
    assert first.shape == second.shape
    assert 0 < (first != second).any(axis=2).sum() < 200


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (5, 4000)])
def test_odd_shapes_can_be_drawn(size):
    record = LabelRecord(
        "a.jpg",
        *size,
        (annotate((0, 0, size[1], size[0]), 1, size=size), annotate((0, 0, 1, 1), 2, parent=1, size=size)),
    )
    picture = draw_forest(np.full((*size, 3), GRAY, np.uint8), record, 10)
    assert picture.shape[0] > TILE_H
    assert picture.shape[1] > 2 * TILE_W


def test_a_record_without_masks_shows_the_photograph(photograph):
    picture = draw_forest(photograph, LabelRecord("a.jpg", H, W), 10)
    assert pixels_of(picture, (GRAY,) * 3) == H * W


def test_a_photograph_read_at_reduced_size_gets_its_masks_in_place():
    full = np.zeros((400, 600, 3), np.uint8)
    full[100:300, 200:400] = (0, 200, 0)
    record = LabelRecord("a.jpg", 400, 600, (annotate((200, 100, 200, 200), 1, size=(400, 600)),))
    picture = draw_forest(full[::4, ::4], record, 1)
    assert pixels_of(picture, (0, 200, 0)) > 50 * 50


def test_a_damaged_mask_is_named(photograph):
    damaged = LabelRecord("a.jpg", H, W, (Annotation(7, {"size": [H, W], "counts": "é"}, 5, (0, 0, 1, 5), 0.5),))
    with pytest.raises(StoreError, match="annotation 7"):
        draw_forest(photograph, damaged, 10)
