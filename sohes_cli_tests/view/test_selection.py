"""Selection of masks: the best ones, in their old forest, in colors distinct between trees and close within."""

from __future__ import annotations

import cmath
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sohes_cli.structures import Annotation, LabelRecord
from sohes_cli.view.selection import count_masks, mask_colors, percentage, select_masks, tree_order

SIZE = (100, 200)


def annotate(i, parent=None, score=0.5, area=None, box=(0, 0, 10, 10)):
    """A mask of which only the figures matter."""
    return Annotation(
        i, {"size": list(SIZE), "counts": "0"}, area if area is not None else 1000 - i, box, score, 0, parent
    )


def make_record(*annotations):
    return LabelRecord("a.jpg", *SIZE, annotations)


@st.composite
def records(draw):
    n = draw(st.integers(1, 25))
    parents = [None if i == 0 else draw(st.none() | st.integers(1, i)) for i in range(n)]
    boxes = st.tuples(st.integers(0, 150), st.integers(0, 70), st.integers(1, 50), st.integers(1, 30))
    scores = st.sampled_from([0.1, 0.2, 0.5, 0.9])
    return make_record(
        *(annotate(i + 1, parents[i], draw(scores), draw(st.integers(1, 500)), draw(boxes)) for i in range(n))
    )


def ancestors_by_id(record):
    forest = record.forest
    ids = [a.id for a in record.annotations]
    return {ids[i]: [ids[j] for j in forest.ancestors(i)] for i in range(len(ids))}


@given(records(), st.integers(1, 30))
def test_the_best_masks_are_kept_with_their_ancestors_among_them(record, max_masks):
    shown = select_masks(record, max_masks)
    kept = {a.id for a in shown.annotations}
    assert len(kept) == min(max_masks, len(record.annotations))
    left_out = [a.score for a in record.annotations if a.id not in kept]
    assert min(a.score for a in shown.annotations) >= max(left_out, default=0)
    before, after = ancestors_by_id(record), ancestors_by_id(shown)
    for annotation in shown.annotations:
        assert after[annotation.id] == [i for i in before[annotation.id] if i in kept]
        assert annotation.level == len(after[annotation.id])


@given(records())
def test_all_masks_are_kept_when_there_is_room(record):
    shown = select_masks(record, len(record.annotations))
    assert [(a.id, a.parent) for a in shown.annotations] == [(a.id, a.parent) for a in record.annotations]


def test_of_equal_scores_the_earlier_masks_are_kept():
    record = make_record(annotate(3), annotate(1), annotate(2, score=0.6))
    assert [a.id for a in select_masks(record, 2).annotations] == [3, 2]


def test_a_part_moves_up_to_its_nearest_kept_ancestor():
    record = make_record(
        annotate(1, score=0.9), annotate(2, 1, score=0.1), annotate(3, 2, score=0.1), annotate(4, 3, score=0.8)
    )
    assert [(a.id, a.parent, a.level) for a in select_masks(record, 2).annotations] == [(1, None, 0), (4, 1, 1)]


def test_no_mask_is_a_wrong_number_of_masks():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        select_masks(make_record(annotate(1)), 0)


@given(records())
def test_the_order_is_by_area_on_each_level(record):
    roots, children = tree_order(record)
    assert sorted(roots + [i for nodes in children for i in nodes]) == list(range(len(record.annotations)))
    for nodes in [roots, *children]:
        areas = [record.annotations[i].area for i in nodes]
        assert areas == sorted(areas, reverse=True)


@given(records())
def test_every_mask_has_a_color_that_does_not_depend_on_the_order(record):
    colors = mask_colors(record)
    assert len(colors) == len(record.annotations)
    assert all(0 <= value <= 255 for color in colors for value in color)
    reverse = LabelRecord(record.file_name, record.height, record.width, record.annotations[::-1])
    same = {a.id: color for a, color in zip(record.annotations, colors, strict=True)}
    assert {a.id: color for a, color in zip(reverse.annotations, mask_colors(reverse), strict=True)} == same


def hue_angle(color):
    """Hue in degrees in OKLab, read back from sRGB."""
    linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
    to_lms = [
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ]
    long, medium, short = (sum(w * v for w, v in zip(row, linear, strict=True)) ** (1 / 3) for row in to_lms)
    a = 1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short
    b = 0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short
    return cmath.phase(complex(a, b)) * 180 / cmath.pi


def angle_between(one, other):
    return abs((hue_angle(one) - hue_angle(other) + 180) % 360 - 180)


def test_parts_keep_the_hue_of_their_tree_in_other_shades():
    record = make_record(annotate(1), *(annotate(i, 1) for i in range(2, 8)), annotate(8, 2), annotate(9, 8))
    colors = mask_colors(record)
    assert len(set(colors)) == len(colors)
    assert all(angle_between(colors[0], color) <= 15 for color in colors[1:])
    for child, parent in [(1, 0), (2, 0), (3, 0), (7, 1), (8, 7)]:
        assert sum(abs(a - b) for a, b in zip(colors[child], colors[parent], strict=True)) >= 40


@pytest.mark.parametrize("n", [2, 4, 6])
def test_roots_that_meet_have_hues_far_apart(n):
    colors = mask_colors(make_record(*(annotate(i) for i in range(1, n + 1))))
    least = min(angle_between(a, b) for i, a in enumerate(colors) for b in colors[:i])
    assert least >= 360 / 12 - 4


def test_a_chain_of_touching_roots_never_repeats_a_hue_next_door():
    boxes = [(10 * i, 0, 10, 10) for i in range(20)]
    colors = mask_colors(make_record(*(annotate(i + 1, box=box, area=100 + i) for i, box in enumerate(boxes))))
    assert min(angle_between(a, b) for a, b in pairwise(colors)) > 80


def test_counts_and_shares_are_put_into_words():
    record = make_record(annotate(1), annotate(2, 1), annotate(3))
    assert count_masks(record, record) == "3 masks in 2 trees"
    assert count_masks(record, select_masks(record, 1)) == "the best 1 of 3 masks in 1 tree"
    assert count_masks(make_record(annotate(1)), make_record(annotate(1))) == "1 mask in 1 tree"
    assert [percentage(annotate(1, area=area)) for area in (20000, 4468, 1000, 3)] == ["100%", "22%", "5%", "0.015%"]
