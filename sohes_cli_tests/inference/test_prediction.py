"""A prediction in all its forms: each must say the same of the masks."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from segment_cases import nested_boxes

from sohes_cli.errors import SohesError
from sohes_cli.explore.hierarchy import build_forest
from sohes_cli.inference.prediction import Prediction
from sohes_cli.masks.packed import PackedMasks

N = 12


def make_prediction(height=36, width=40, n=N, seed=0):
    packed = PackedMasks.from_masks(nested_boxes(n, seed))
    probabilities = np.random.default_rng(seed).random((n, n), dtype=np.float32)
    return Prediction(
        "sub/a.jpg", height, width, packed, np.linspace(0.9, 0.1, n), build_forest(packed, 0.75), probabilities
    )


@pytest.mark.parametrize(("height", "width"), [(36, 40), (72, 80), (37, 95), (400, 41)])
def test_masks_boxes_and_record_agree_at_the_full_size(height, width):
    prediction = make_prediction(height, width)
    record = prediction.to_record()
    masks = prediction.masks
    assert masks.shape == (N, height, width)
    assert masks.dtype == bool
    for mask, box, annotation in zip(masks, prediction.boxes_xyxy, record.annotations, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(annotation.segmentation).astype(bool), mask)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        left, top, w, h = annotation.bbox_xywh
        assert box.tolist() == [left, top, left + w, top + h]
        assert annotation.area == mask.sum()
    assert (record.file_name, record.height, record.width) == ("sub/a.jpg", height, width)
    assert record.forest == prediction.forest
    assert tuple(a.level for a in record.annotations) == prediction.levels
    assert tuple((a.parent or 0) - 1 for a in record.annotations) == prediction.parents
    np.testing.assert_allclose([a.score for a in record.annotations], prediction.scores, atol=1e-6)


def test_it_counts_and_sums_itself_up():
    prediction = make_prediction()
    roots, depth = prediction.parents.count(-1), max(prediction.levels) + 1
    assert len(prediction) == N
    assert repr(prediction) == f"Prediction('sub/a.jpg', 36 x 40, 12 masks, {roots} roots, {depth} levels)"
    assert all(prediction.levels[i] == prediction.levels[p] + 1 for i, p in enumerate(prediction.parents) if p >= 0)


def test_annotations_for_coco_are_those_of_the_record():
    prediction = make_prediction()
    annotations = prediction.to_coco(image_id=7)
    assert [a["id"] for a in annotations] == list(range(1, N + 1))
    for i, annotation in enumerate(annotations):
        assert (annotation["image_id"], annotation["category_id"], annotation["iscrowd"]) == (7, 1, 0)
        assert annotation["parent"] == (prediction.parents[i] + 1 or None)
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), prediction.masks[i])
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()


def test_a_selection_keeps_nearest_kept_ancestors():
    prediction = make_prediction(seed=3)
    assert max(prediction.levels) >= 2
    is_kept = np.array([level != 1 for level in prediction.levels])
    chosen = prediction.select(is_kept)
    kept = np.flatnonzero(is_kept)
    np.testing.assert_array_equal(chosen.masks, prediction.masks[kept])
    np.testing.assert_array_equal(chosen.scores, prediction.scores[kept])
    np.testing.assert_array_equal(chosen.ancestor_probabilities, prediction.ancestor_probabilities[kept][:, kept])
    for new, old in enumerate(kept):
        above = [int(a) for a in prediction.forest.ancestors(int(old)) if is_kept[a]]
        assert [int(kept[a]) for a in chosen.forest.ancestors(new)] == above
    assert chosen.levels.count(1) > 0


@pytest.mark.parametrize("indices", [[5, 1, 1, -1], slice(0, 4), np.zeros(N, bool), np.array([3])])
def test_a_selection_is_in_the_order_of_the_prediction(indices):
    prediction = make_prediction()
    expected = sorted(set(np.arange(N)[indices].tolist()))
    chosen = prediction.select(indices)
    assert chosen.scores.tolist() == prediction.scores[expected].tolist()
    assert all(one >= other for one, other in pairwise(chosen.scores))
    assert len(chosen) == len(chosen.masks) == len(expected)


def test_a_prediction_without_masks_has_all_its_forms():
    empty = make_prediction(100, 90).select([])
    assert repr(empty) == "Prediction('sub/a.jpg', 100 x 90, 0 masks, 0 roots, 0 levels)"
    assert (empty.masks.shape, empty.boxes_xyxy.shape, empty.to_coco(), empty.parents) == ((0, 100, 90), (0, 4), [], ())
    assert empty.to_record().annotations == ()


def test_detections_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(SohesError, match="pip install supervision"):
        make_prediction().to_detections()


@pytest.mark.parametrize("n", [N, 0])
def test_detections_are_the_masks(n):
    supervision = pytest.importorskip("supervision")
    prediction = make_prediction(72, 80).select(slice(0, n))
    detections = prediction.to_detections()
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == n
    np.testing.assert_array_equal(detections.mask, prediction.masks)
    np.testing.assert_array_equal(detections.xyxy, prediction.boxes_xyxy)
    np.testing.assert_allclose(detections.confidence, prediction.scores, rtol=1e-6)
    assert detections.data["parent"].tolist() == list(prediction.parents)
    assert detections.data["level"].tolist() == list(prediction.levels)
    assert set(detections.class_id.tolist()) <= {0}
