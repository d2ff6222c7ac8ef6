"""A record from masks, scores and a forest: every number is that of the masks at the full size."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sohes_cli.labels.records import label_record
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.structures import Forest


@pytest.mark.parametrize("scale", [1, 3])
def test_a_record_describes_its_masks(scale):
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:18, 3:25] = True
    masks[1, 4:10, 5:9] = True
    masks[2, 5:7, 6:8] = True
    scores = np.array([0.91234567, 0.5, 1 / 3])
    record = label_record("a/b.jpg", 20 * scale, 30 * scale, PackedMasks.from_masks(masks), scores, Forest((-1, 0, 1)))
    assert (record.file_name, record.height, record.width) == ("a/b.jpg", 20 * scale, 30 * scale)
    assert [(a.id, a.parent, a.level, a.score) for a in record.annotations] == [
        (1, None, 0, 0.912346),
        (2, 1, 1, 0.5),
        (3, 2, 2, 0.333333),
    ]
    for annotation, mask in zip(record.annotations, masks, strict=True):
        large = mask.repeat(scale, 0).repeat(scale, 1)
        np.testing.assert_array_equal(coco_mask.decode(annotation.segmentation), large)
        rows, columns = np.flatnonzero(large.any(1)), np.flatnonzero(large.any(0))
        assert annotation.area == large.sum()
        assert annotation.bbox_xywh == (columns[0], rows[0], len(columns), len(rows))


def test_no_masks_make_an_empty_record():
    record = label_record("a.jpg", 5, 6, PackedMasks.from_masks(np.zeros((0, 5, 6), bool)), np.zeros(0), Forest(()))
    assert record.annotations == ()
