"""The written ground truth: pycocotools loads it, ids link the parts, images are listed, contradictions refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sohes_cli.convert.ground_truth import (
    CONVERTED_MARK,
    BadFile,
    Category,
    Dataset,
    TruthImage,
    TruthMask,
    image_list_path,
    write_ground_truth,
)
from sohes_cli.errors import DatasetError, StoreError

H, W = 6, 8


def mask(top, left, bottom, right, **values):
    pixels = np.zeros((H, W), np.uint8, order="F")
    pixels[top:bottom, left:right] = 1
    rle = coco_mask.encode(pixels)
    segmentation = {"size": [H, W], "counts": rle["counts"].decode()}
    return TruthMask(segmentation, int(pixels.sum()), [left, top, right - left, bottom - top], category_id=1, **values)


def dataset(*images):
    return Dataset("toy", "val", iter(images), len(images), lambda: (Category(1, "thing", "all"),), "images")


def write(tmp_path, *images):
    out = tmp_path / "gt.json"
    return write_ground_truth(dataset(*images), out), out


WHOLE_AND_PARTS = (
    mask(0, 0, 4, 4),
    mask(0, 0, 2, 4, parent=0),
    mask(0, 0, 1, 1, parent=1),
    mask(4, 4, 6, 8, is_crowd=True),
)


def test_it_loads_in_pycocotools_with_the_masks_it_was_given(tmp_path):
    polygon = TruthMask([[1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]], 12.0, [1.0, 1.0, 4.0, 3.0], 1)
    counts, out = write(
        tmp_path, TruthImage(7, "a.jpg", H, W, WHOLE_AND_PARTS), TruthImage(3, "sub/b.jpg", H, W, (polygon,))
    )
    coco = COCO(str(out))
    assert coco.getImgIds() == [7, 3]
    assert [coco.annToMask(a).sum() for a in coco.loadAnns(coco.getAnnIds())] == [16, 8, 1, 8, 12]
    assert coco.loadCats([1]) == [{"id": 1, "name": "thing", "supercategory": "all"}]
    assert (counts.images, counts.masks, counts.parts, counts.crowds, counts.bad) == (2, 5, 2, 1, [])


def test_parents_are_ids_of_the_file_whether_ids_are_given_or_not(tmp_path):
    given_ids = tuple(replace(m, id=i) for m, i in zip(WHOLE_AND_PARTS, (40, 30, 20, 10), strict=True))
    for masks, expected in (
        (given_ids, {40: None, 30: 40, 20: 30, 10: None}),
        (WHOLE_AND_PARTS, {5: None, 6: 5, 7: 6, 8: None}),
    ):
        images = [TruthImage(2, "b.jpg", H, W, masks)]
        if masks is WHOLE_AND_PARTS:
            images.insert(0, TruthImage(1, "a.jpg", H, W, WHOLE_AND_PARTS))
        _, out = write(tmp_path, *images)
        found = {a["id"]: a["parent"] for a in json.loads(out.read_text())["annotations"] if a["image_id"] == 2}
        assert found == expected


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_forest_survives(tmp_path_factory, data):
    n = data.draw(st.integers(0, 8))
    order = data.draw(st.permutations(range(n)))  # a parent may come before or after its parts
    parents = {
        order[i]: None if i == 0 else data.draw(st.one_of(st.none(), st.sampled_from(order[:i]))) for i in range(n)
    }
    masks = tuple(mask(0, 0, 1, 1, parent=parents[i]) for i in range(n))
    counts, out = write(tmp_path_factory.mktemp("forest"), TruthImage(1, "a.jpg", H, W, masks))
    annotations = json.loads(out.read_text())["annotations"]
    position = {a["id"]: i for i, a in enumerate(annotations)}
    assert {i: None if a["parent"] is None else position[a["parent"]] for i, a in enumerate(annotations)} == parents
    assert counts.parts == sum(p is not None for p in parents.values())


def test_the_image_list_holds_every_image_with_and_without_masks(tmp_path):
    _, out = write(tmp_path, TruthImage(2, "b/ü 1.jpg", H, W, ()), TruthImage(1, "a.jpg", H, W, WHOLE_AND_PARTS))
    assert image_list_path(out) == tmp_path / "gt.images.txt"
    assert image_list_path(out).read_text() == "b/ü 1.jpg\na.jpg\n"


def test_the_file_says_what_it_is(tmp_path):
    _, out = write(tmp_path, TruthImage(1, "a.jpg", H, W, (mask(0, 0, 1, 1, extra={"annotator": 3}),)))
    data = json.loads(out.read_text())
    assert CONVERTED_MARK in out.read_bytes()[:512]
    assert (data["info"]["dataset"], data["info"]["split"], data["info"]["image_root"]) == ("toy", "val", "images")
    assert data["annotations"][0]["annotator"] == 3


def test_bad_files_are_counted_and_reported_and_the_others_written(tmp_path):
    bad = BadFile(tmp_path / "x.png", "is cut short")
    seen = []
    images = (TruthImage(1, "a.jpg", H, W, WHOLE_AND_PARTS), bad, TruthImage(2, "b.jpg", H, W, ()))
    counts = write_ground_truth(dataset(*images), tmp_path / "gt.json", seen.append)
    assert seen == list(images)
    assert counts.bad == [bad]
    assert len(COCO(str(tmp_path / "gt.json")).imgs) == 2


A = TruthImage(1, "a.jpg", H, W, ())
ONE = mask(0, 0, 1, 1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((A, TruthImage(1, "b.jpg", H, W, ())), "Image 1 (b.jpg) occurs twice"),
        ((A, TruthImage(2, "a.jpg", H, W, ())), "Image 2 (a.jpg) occurs twice"),
        (
            (TruthImage(1, "a.jpg", H, W, (replace(ONE, id=5), replace(ONE, id=5))),),
            "Annotation 5 of a.jpg occurs twice",
        ),
        ((TruthImage(1, "a.jpg", W, H, (ONE,)),), "mask 0 has size [6, 8], the image [8, 6]"),
        ((TruthImage(1, "a.jpg", H, W, (replace(ONE, parent=1),)),), "a.jpg: parents must lie in"),
        ((TruthImage(1, "a.jpg", H, W, (replace(ONE, parent=-1),)),), "the parent of mask 0 cannot be -1"),
        ((TruthImage(1, "a.jpg", H, W, (replace(ONE, parent=1), replace(ONE, parent=0))),), "cycle"),
        ((TruthImage(1, "a.jpg", H, W, (replace(ONE, id=9, area=float("nan")),)),), "Annotation 9 cannot be written"),
        ((TruthImage(1, "../a.jpg", H, W, ()),), "'../a.jpg' is not the path of an image"),
        ((TruthImage(1, "/a.jpg", H, W, ()),), "'/a.jpg' is not the path of an image"),
        ((TruthImage(1, "a\nb.jpg", H, W, ()),), "is not the path of an image"),
        ((TruthImage(1, "", H, W, ()),), "is not the path of an image"),
        ((BadFile(A, "is cut short"),), "No image of toy val could be converted, 1 files are damaged"),  # type: ignore[arg-type]
        ((), "No image of toy val could be converted"),
    ],
)
def test_a_contradiction_is_named_and_nothing_is_written(tmp_path, images, words):
    with pytest.raises(DatasetError) as error:
        write(tmp_path, *images)
    assert words in error.value.message
    assert error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_reading_leaves_the_older_file(tmp_path):
    write(tmp_path, A)
    before = (tmp_path / "gt.json").read_bytes()

    def images():
        yield TruthImage(2, "b.jpg", H, W, ())
        raise DatasetError("the second half is missing")

    with pytest.raises(DatasetError, match="second half"):
        write_ground_truth(replace(dataset(), images=images()), tmp_path / "gt.json")
    assert (tmp_path / "gt.json").read_bytes() == before


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        write_ground_truth(dataset(A), tmp_path / "file" / "gt.json")
