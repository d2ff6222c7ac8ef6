"""Annotations and converted files for the tests of labels, views and converters."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sohes_cli.convert.ground_truth import image_list_path, write_ground_truth
from sohes_cli.structures import Annotation

__all__ = ["annotate", "annotate_box", "rectangle", "written"]


def annotate(mask, annotation_id, parent=None, score=0.5, level=0):
    """Make the annotation of a mask [H, W]."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    box = tuple(int(side) for side in coco_mask.toBbox(rle))
    segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode()}
    return Annotation(annotation_id, segmentation, int(mask.sum()), box, score, level, parent)


def annotate_box(box_xywh, annotation_id, parent=None, score=0.5, *, size):
    """Make the annotation of a filled box in an image of a size [H, W]."""
    left, top, width, height = box_xywh
    return annotate(rectangle(left, top, left + width, top + height, size), annotation_id, parent, score)


def rectangle(left, top, right, bottom, size):
    """Fill a rectangle, bool [H, W]."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def written(dataset, out):
    """Write a data set; return pycocotools' view of the file, its list of images and its counts."""
    counts = write_ground_truth(dataset, out)
    return COCO(str(out)), image_list_path(out).read_text().splitlines(), counts
