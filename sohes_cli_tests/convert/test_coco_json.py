"""Files in COCO's layout: every form of a mask has pycocotools' pixels, and every defect is named by annotation."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sohes_cli.convert.coco_json import Dialect, checked_segmentation, coco_dataset, read_coco_json, truth_images
from sohes_cli.convert.folders import find_file
from sohes_cli.errors import DatasetError

H, W = 4, 6
SQUARE = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]]


def annotation(**values):
    base = {
        "id": 1,
        "image_id": 5,
        "category_id": 2,
        "segmentation": SQUARE,
        "area": 4.0,
        "bbox": [1.0, 1.0, 2.0, 2.0],
        "iscrowd": 0,
    }
    return {**base, **values}


def coco_file(tmp_path, *annotations, **values):
    data = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": H, "width": W}],
        "annotations": list(annotations),
        "categories": [{"id": 2, "name": "cat", "supercategory": "animal"}],
        **values,
    }
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(data))
    return path


def images_of(path, dialect=Dialect()):  # noqa: B008 (frozen)
    return list(truth_images(read_coco_json(path), dialect))


def uncompressed(pixels):
    """Run lengths in column order, the first of them background."""
    flat = np.concatenate(([0], pixels.T.reshape(-1), [-1]))
    edges = np.flatnonzero(np.diff(flat)) if pixels.any() else np.array([pixels.size])
    ends = np.append(edges[edges < pixels.size], pixels.size)
    return np.diff(np.concatenate(([0], ends))).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=H * W, max_size=H * W))
def test_run_lengths_of_both_kinds_mean_the_same_pixels(bits):
    pixels = np.asfortranarray(np.array(bits, np.uint8).reshape(H, W))
    expected = coco_mask.encode(pixels)["counts"].decode()
    counts = uncompressed(pixels)
    assert sum(counts) == H * W
    for given_counts in (counts, expected):
        rle = checked_segmentation({"size": [H, W], "counts": given_counts}, H, W)
        assert rle == {"size": [H, W], "counts": expected}
        assert (coco_mask.decode(rle) == pixels).all()


def test_polygons_stay_as_they_are():
    for polygons in (SQUARE, [*SQUARE, [0.5, 0.25, 2.0, 0.0, 1, 1]]):
        assert checked_segmentation(polygons, H, W) == polygons


def test_points_and_lines_among_polygons_are_dropped():
    assert checked_segmentation([[1.0, 1.0], *SQUARE, [1.0, 1.0, 2.0, 2.0]], H, W) == SQUARE


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([], "is empty"),
        ([[]], "none of its polygons has three points"),
        ([[1, 2]], "none of its polygons has three points"),
        ([[1, 2, 3, 4, 5]], "even number"),
        ([[1, 2, 3, float("nan"), 5, 6]], "finite"),
        ([[0, 0, 2e6, 0, 0, 5]], "a polygon has a coordinate that no image has"),
        ([1, 2, 3, 4], "a polygon must be"),
        ("abc", "neither polygons nor run lengths"),
        (None, "neither polygons nor run lengths"),
        ({"counts": "abc"}, "neither polygons nor run lengths"),
        ({"size": [W, H], "counts": [H * W]}, "has size [6, 4], its image [4, 6]"),
        ({"size": [H, W], "counts": [3, 2]}, "do not fill 4 x 6"),
        ({"size": [H, W], "counts": [30, -6]}, "do not fill 4 x 6"),
        ({"size": [H, W], "counts": [24.0]}, "do not fill 4 x 6"),
        ({"size": [H, W], "counts": "1"}, "does not fill 4 x 6"),
        ({"size": [H, W], "counts": "\x00"}, "run-length string is damaged"),
    ],
)
def test_a_mask_that_is_none_is_refused_with_the_id_of_its_annotation(tmp_path, segmentation, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        checked_segmentation(segmentation, H, W)
    with pytest.raises(DatasetError) as error:
        images_of(coco_file(tmp_path, annotation(id=77, segmentation=segmentation)))
    assert "gt.json: annotation 77: " in error.value.message
    assert error.value.hint


def test_annotations_are_grouped_by_image_in_the_order_of_the_file(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in (9, 5, 7)]
    crowd = {"size": [H, W], "counts": [10, 4, 10]}
    path = coco_file(
        tmp_path,
        annotation(id=3, image_id=7),
        annotation(id=1, image_id=9),
        annotation(id=2, image_id=7, segmentation=crowd, iscrowd=1, note="n", other="o"),
        images=images,
    )
    found = images_of(path, Dialect(extra=("note",)))
    assert [(image.id, image.file_name, [m.id for m in image.masks]) for image in found] == [
        (9, "9.jpg", [1]),
        (5, "5.jpg", []),
        (7, "7.jpg", [3, 2]),
    ]
    assert [m.is_crowd for m in found[2].masks] == [False, True]
    assert [m.extra for m in found[2].masks] == [{}, {"note": "n"}]
    assert (found[2].masks[0].area, found[2].masks[0].bbox_xywh) == (4.0, [1.0, 1.0, 2.0, 2.0])


def test_ids_are_kept_unless_one_is_below_one(tmp_path):
    def ids(*wanted):
        return [m.id for m in images_of(coco_file(tmp_path, *(annotation(id=i) for i in wanted)))[0].masks]

    assert ids(12, 4) == [12, 4]
    assert ids(0, 4) == [None, None]


def test_categories_that_are_used_but_not_listed_are_added(tmp_path):
    file = read_coco_json(coco_file(tmp_path, annotation(), annotation(id=2, category_id=0)))
    assert [(c.id, c.name, c.supercategory) for c in file.categories] == [(2, "cat", "animal"), (0, "", "")]


def test_boxes_without_a_mask_are_left_out_where_they_are_known_and_their_parts_become_roots(tmp_path):
    dialect = Dialect(parent_id=lambda a: a["whole"], has_bare_boxes=True)
    path = coco_file(
        tmp_path,
        annotation(id=1, segmentation=[], whole=None),
        annotation(id=2, whole=1),
        annotation(id=3, whole=None),
        annotation(id=4, whole=3),
    )
    assert [(m.id, m.parent) for m in images_of(path, dialect)[0].masks] == [(2, None), (3, None), (4, 1)]


def test_a_part_of_another_image_is_refused(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in (5, 6)]
    path = coco_file(tmp_path, annotation(id=1, whole=None), annotation(id=2, image_id=6, whole=1), images=images)
    with pytest.raises(DatasetError, match="annotation 2: it is a part of annotation 1, which its image does not have"):
        images_of(path, Dialect(parent_id=lambda a: a["whole"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no list of images"),
        ('{"images": [], "annotations": []}', "has no list of categories"),
        ('{"images": {}, "annotations": [], "categories": []}', "has no list of images"),
        ('{"images": [], "annotations": [7], "categories": []}', "has no list of annotations"),
        ('{"images": [{"id": "5"}], "annotations": [], "categories": []}', "has the id '5'"),
        (
            '{"images": [], "annotations": [{"id": 1, "image_id": 8}], "categories": []}',
            "annotation 1 is of image 8, which",
        ),
        (
            '{"images": [], "annotations": [{"id": 1, "image_id": []}], "categories": []}',
            "annotation 1 is of image [], which",
        ),
        ('{"images": [], "annotations": [{"image_id": 8}], "categories": []}', "has the id None"),
    ],
)
def test_a_file_in_another_layout_is_named(tmp_path, text, words):
    (tmp_path / "gt.json").write_text(text)
    with pytest.raises(DatasetError) as error:
        read_coco_json(tmp_path / "gt.json")
    assert words in error.value.message
    assert str(tmp_path / "gt.json") in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"area": None}, "annotation 1: its area None"),
        ({"bbox": [1, 2, 3]}, "annotation 1: its area 4.0 and box [1, 2, 3]"),
        ({"bbox": 7}, "annotation 1: its area 4.0 and box 7"),
        ({"area": -4.0}, "annotation 1: its area -4.0"),
        ({"iscrowd": "0"}, "annotation 1: its iscrowd '0' must be 0 or 1"),
        ({"iscrowd": 2}, "annotation 1: its iscrowd 2"),
        ({"category_id": "2"}, "annotation 1: its category_id '2' must be a whole number"),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path, broken, words):
    with pytest.raises(DatasetError) as error:
        images_of(coco_file(tmp_path, annotation(**broken)))
    assert words in error.value.message


def test_a_missing_key_is_named(tmp_path):
    incomplete = annotation()
    del incomplete["bbox"]
    with pytest.raises(DatasetError, match="annotation 1: it has no bbox"):
        images_of(coco_file(tmp_path, incomplete))
    with pytest.raises(DatasetError, match="image 5: it has no file_name"):
        images_of(coco_file(tmp_path, images=[{"id": 5, "height": H, "width": W}]))
    with pytest.raises(DatasetError, match="image 5: its height and width must be whole positive numbers, not 0"):
        images_of(coco_file(tmp_path, images=[{"id": 5, "file_name": "a.jpg", "height": 0, "width": W}]))


def test_files_are_looked_for_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.json").write_text("{}")
    assert find_file(tmp_path, ("a.json", "sub/b.json")) == tmp_path / "sub" / "b.json"
    with pytest.raises(DatasetError) as error:
        find_file(tmp_path, ("a.json", "other/b.json"))
    assert error.value.message == f"{tmp_path} holds no a.json or other/b.json."


def test_a_dataset_knows_its_length_and_gives_every_image(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in range(3)]
    path = coco_file(tmp_path, images=images)
    dataset = coco_dataset("toy", "val", tmp_path, path, ("images",))
    assert (dataset.total, dataset.image_root) == (3, "images")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.jpg").touch()
    assert coco_dataset("toy", "val", tmp_path, path, ("images", "sub")).image_root == "sub"
    assert [image.id for image in dataset.images] == [0, 1, 2]
    assert list(coco_dataset("toy", "val", tmp_path, coco_file(tmp_path, images=[]), ("images",)).images) == []
