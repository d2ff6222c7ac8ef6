"""COCO export: pycocotools loads the file, ids and parents are global, masks agree with areas and boxes."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import weakref

import numpy as np
import pytest
from label_cases import annotate
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sohes_cli.errors import StoreError
from sohes_cli.labels.coco import CocoSummary, export_coco
from sohes_cli.labels.store import LabelStore
from sohes_cli.structures import LabelRecord


def make_record(file_name, height, width, seed):
    """Three masks in a chain, with ids that do not start at 1, and a root of ragged outline."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, height, width), np.uint8)
    masks[0, 1:, :-2] = masks[1, 2:-2, 2:-4] = masks[2, 4:-4, 4:-6] = 1
    masks[3] = rng.random((height, width)) < 0.3
    parents = [None, 7, 5, None]
    ids = [7, 5, 9, 2]
    annotations = [
        annotate(m, i, p, rng.random(), lv) for m, i, p, lv in zip(masks, ids, parents, [0, 1, 2, 0], strict=True)
    ]
    return LabelRecord(file_name, height, width, tuple(annotations))


@pytest.fixture
def store(tmp_path):
    store = LabelStore(tmp_path / "labels")
    for seed, name in enumerate(["sub/b.jpg", "a.png", "ärger/写真.jpg", "a.jpg"]):
        store.write(make_record(name, 20 + seed, 31 - seed, seed))
    store.write(LabelRecord("empty.jpg", 5, 6))
    return store


def load(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_loads_what_the_records_hold(tmp_path, store):
    out = tmp_path / "labels.json"
    assert export_coco(store, out) == CocoSummary(images=5, annotations=16)
    coco = load(out)
    assert [image["file_name"] for image in coco.dataset["images"]] == store.names()
    assert [image["id"] for image in coco.dataset["images"]] == [1, 2, 3, 4, 5]
    for image in coco.dataset["images"]:
        record = store.read(image["file_name"])
        assert (image["height"], image["width"]) == (record.height, record.width)
        exported = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(exported) == len(record.annotations)
        for old, new in zip(record.annotations, exported, strict=True):
            assert (new["score"], new["level"]) == (old.score, old.level)
            assert (coco.annToMask(new) == coco_mask.decode(old.segmentation)).all()


def test_areas_and_boxes_are_those_of_the_run_lengths(tmp_path, store):
    export_coco(store, tmp_path / "labels.json")
    for annotation in load(tmp_path / "labels.json").dataset["annotations"]:
        assert annotation["area"] == coco_mask.area(annotation["segmentation"])
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert isinstance(annotation["segmentation"]["counts"], str)


def test_ids_are_unique_and_parents_stay_in_their_image(tmp_path, store):
    export_coco(store, tmp_path / "labels.json")
    annotations = load(tmp_path / "labels.json").dataset["annotations"]
    by_id = {a["id"]: a for a in annotations}
    assert sorted(by_id) == list(range(1, 17))
    for image_id in {a["image_id"] for a in annotations}:
        outer, middle, inner, other = (a for a in annotations if a["image_id"] == image_id)
        assert [outer["parent"], other["parent"]] == [None, None]
        assert (middle["parent"], inner["parent"]) == (outer["id"], middle["id"])
    assert all(by_id[a["parent"]]["image_id"] == a["image_id"] for a in annotations if a["parent"] is not None)


def test_the_fixed_parts_are_there(tmp_path, store):
    export_coco(store, tmp_path / "labels.json")
    data = json.loads((tmp_path / "labels.json").read_text())
    assert set(data) == {"info", "licenses", "images", "annotations", "categories"}
    assert data["licenses"] == []
    assert data["categories"] == [{"id": 1, "name": "entity", "supercategory": "entity"}]
    assert {(a["category_id"], a["iscrowd"]) for a in data["annotations"]} == {(1, 0)}


def test_equal_stores_give_equal_bytes(tmp_path, store):
    export_coco(store, tmp_path / "first.json")
    export_coco(store, tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()


def test_an_empty_store_is_a_valid_file(tmp_path):
    (tmp_path / "labels").mkdir()
    assert export_coco(LabelStore(tmp_path / "labels"), tmp_path / "labels.json") == CocoSummary(0, 0)
    assert load(tmp_path / "labels.json").getImgIds() == []


class CountingStore(LabelStore):
    """Counts how many of the records it has read are still alive."""

    def __init__(self, root):
        super().__init__(root)
        self.alive = weakref.WeakSet()
        self.most_alive = 0

    def read(self, file_name):
        gc.collect()
        record = super().read(file_name)
        self.alive.add(_Tracker.attach(record))
        self.most_alive = max(self.most_alive, len(self.alive))
        return record


class _Tracker:
    """Lives as long as the record it is attached to; a record itself cannot be put into a set."""

    @classmethod
    def attach(cls, record):
        tracker = cls()
        object.__setattr__(record, "tracker", tracker)
        return tracker


def test_records_are_not_kept(tmp_path):
    store = CountingStore(tmp_path / "labels")
    for i in range(30):
        store.write(make_record(f"{i}.jpg", 20, 30, i))
    export_coco(store, tmp_path / "labels.json")
    assert store.most_alive <= 2  # the one just read and the one before it


DAMAGES = {
    "not JSON": lambda text: text[:-9],
    "another area": lambda text: text.replace('"area":', '"area":1', 1),
    "another box": lambda text: text.replace('"bbox":[', '"bbox":[1', 1),
    "no run lengths": lambda text: text.replace('"counts":"', '"counts":"é', 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_corrupt_record_is_named_and_no_file_is_left(tmp_path, store, damage):
    path = store.record_path("sub/b.jpg")
    path.write_text(damage(path.read_text()))
    out = tmp_path / "out" / "labels.json"
    with pytest.raises(StoreError, match=r"sub/b\.jpg"):
        export_coco(store, out)
    assert not list(out.parent.iterdir())


def test_a_failed_export_leaves_the_file_that_was_there(tmp_path, store):
    out = tmp_path / "labels.json"
    export_coco(store, out)
    before = out.read_bytes()
    store.record_path("sub/b.jpg").write_text("{")
    with pytest.raises(StoreError):
        export_coco(store, out)
    assert out.read_bytes() == before
