"""Forests and label records: what they derive, what they refuse, and that a record survives its JSON."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sohes_cli.errors import StoreError
from sohes_cli.structures import Annotation, Forest, LabelRecord

WHOLE = {"size": [2, 3], "counts": "06"}


def make_annotation(id=1, parent=None, level=0, **changes):  # noqa: A002 - the field's name
    values = {"segmentation": WHOLE, "area": 6, "bbox_xywh": (0, 0, 3, 2), "score": 0.25} | changes
    return Annotation(id=id, parent=parent, level=level, **values)


def make_record(*annotations, height=2, width=3):
    return LabelRecord("sub/bild ä.jpg", height, width, annotations)


@st.composite
def parent_lists(draw):
    """Parents of a random forest whose nodes are in random order."""
    n = draw(st.integers(0, 12))
    order = draw(st.permutations(range(n)))
    parents = [-1] * n
    for place, node in enumerate(order):
        parents[node] = order[draw(st.integers(0, place - 1))] if place and draw(st.booleans()) else -1
    return parents


def test_a_forest_by_hand():
    forest = Forest((-1, 0, 1, -1, 1))
    assert forest.roots == [0, 3]
    assert forest.children == [[1], [2, 4], [], [], []]
    assert forest.levels == [0, 1, 2, 0, 2]
    assert forest.ancestors(4) == [1, 0]
    assert forest.ancestors(3) == []


def test_an_empty_forest():
    forest = Forest(())
    assert forest.roots == forest.children == forest.levels == []


@given(parent_lists())
def test_levels_children_and_ancestors_agree(parents):
    forest = Forest(tuple(parents))
    assert sorted(forest.roots + [c for below in forest.children for c in below]) == list(range(len(parents)))
    for node, parent in enumerate(parents):
        assert forest.levels[node] == len(forest.ancestors(node)) == (0 if parent < 0 else forest.levels[parent] + 1)
        assert forest.ancestors(node) == ([] if parent < 0 else [parent, *forest.ancestors(parent)])
        assert all(parents[child] == node for child in forest.children[node])


@given(parent_lists().filter(lambda parents: len(parents) > 0), st.data())
def test_a_root_below_itself_is_refused(parents, data):
    forest = Forest(tuple(parents))
    node = data.draw(st.integers(0, len(parents) - 1))
    root = [node, *forest.ancestors(node)][-1]
    parents[root] = node
    with pytest.raises(ValueError, match="cycle"):
        Forest(tuple(parents))


@pytest.mark.parametrize("parents", [(0,), (1, 0), (-1, 2, 1), (1, 2, 0, -1)])
def test_cycles_are_refused(parents):
    with pytest.raises(ValueError, match="cycle"):
        Forest(parents)


@pytest.mark.parametrize("parents", [(1,), (-2,), (-1, 2)])
def test_parents_out_of_range_are_refused(parents):
    with pytest.raises(ValueError, match="must lie in"):
        Forest(parents)


def test_a_record_survives_json():
    record = make_record(
        make_annotation(7), make_annotation(2, parent=7, level=1, score=0.125, area=3, bbox_xywh=(1, 0, 2, 2))
    )
    text = json.dumps(record.to_json())
    assert LabelRecord.from_json(json.loads(text)) == record
    empty = make_record()
    assert LabelRecord.from_json(json.loads(json.dumps(empty.to_json()))) == empty


def test_a_records_json_has_the_layout_of_sa_1b():
    data = make_record(make_annotation(7), make_annotation(2, parent=7, level=1)).to_json()
    assert data["image"] == {"file_name": "sub/bild ä.jpg", "height": 2, "width": 3}
    assert data["annotations"][1] == {
        "id": 2,
        "segmentation": {"size": [2, 3], "counts": "06"},
        "area": 6,
        "bbox": [0, 0, 3, 2],
        "score": 0.25,
        "level": 1,
        "parent": 7,
    }


def test_a_records_forest_counts_by_position():
    record = make_record(make_annotation(5, parent=9), make_annotation(9), make_annotation(1, parent=5))
    assert record.forest == Forest((1, -1, 0))


def test_an_id_that_occurs_twice_is_refused():
    with pytest.raises(StoreError, match=r"sub/bild ä\.jpg holds an annotation id twice"):
        make_record(make_annotation(1), make_annotation(1))


def test_a_parent_that_is_not_there_is_refused():
    with pytest.raises(StoreError, match="annotation 1 names a parent 4"):
        make_record(make_annotation(1, parent=4))


def test_parents_in_a_circle_are_refused():
    with pytest.raises(StoreError, match=r"sub/bild ä\.jpg: parents form a cycle"):
        make_record(make_annotation(1, parent=2), make_annotation(2, parent=1))
    with pytest.raises(StoreError, match="cycle"):
        make_record(make_annotation(1, parent=1))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(StoreError, match=r"annotation 1 has a mask of \[2, 3\], the image is \[3, 2\]"):
        make_record(make_annotation(1), height=3, width=2)


def broken(path, value=None, drop=False):
    """A stored record with one value replaced or dropped."""
    data = copy.deepcopy(make_record(make_annotation(1), make_annotation(2, parent=1)).to_json())
    *way, last = path
    inner = data
    for key in way:
        inner = inner[key]
    if drop:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        "text",
        broken(["image"], drop=True),
        broken(["image", "width"], drop=True),
        broken(["image", "height"], "tall"),
        broken(["image", "height"], float("inf")),
        broken(["annotations"], 3),
        broken(["annotations", 0], None),
        broken(["annotations", 0, "score"], drop=True),
        broken(["annotations", 0, "bbox"], [1, 2, 3]),
        broken(["annotations", 0, "segmentation"], "06"),
        broken(["annotations", 0, "segmentation", "size"], [2]),
        broken(["annotations", 0, "area"], "large"),
        broken(["annotations", 1, "parent"], "one"),
    ],
    ids=lambda data: str(data)[:60],
)
def test_what_is_no_record_is_named_by_its_source(data):
    with pytest.raises(StoreError, match=r"labels/a\.json"):
        LabelRecord.from_json(data, "labels/a.json")


@pytest.mark.parametrize(
    "data",
    [
        broken(["annotations", 1, "id"], 1),
        broken(["annotations", 0, "parent"], 2),
        broken(["annotations", 1, "parent"], 3),
    ],
)
def test_a_stored_record_that_contradicts_itself_is_refused(data):
    with pytest.raises(StoreError):
        LabelRecord.from_json(data)
