"""COCO's greedy matching of predicted masks to annotated masks.

For each IoU threshold and each range of areas, predictions in the order of their scores each take the free annotation
of highest IoU at or above the threshold, annotations that count before ignored ones; a crowd region stays free. A
prediction is ignored if it matches an ignored annotation, or matches none and its own area is out of range.
`match_detections` visits the few pairs above the lowest threshold; `match_detections_reference` is the same rule in
plain loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AREA_RANGES", "IOU_THRESHOLDS", "Matches", "crowd_ious", "match_detections", "match_detections_reference"]

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""COCO's IoU thresholds 0.50:0.05:0.95, to the last bit."""

AREA_RANGES: NDArray[np.float64] = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], np.float64)
"""COCO's ranges of areas in pixels, both ends included: all, small, medium, large."""

_ALMOST_ONE = 1 - 1e-10


@dataclass(frozen=True)
class Matches:
    """Matches of D predictions of an image, best first, at T thresholds in A ranges of areas.

    Args:
        is_matched: True for a prediction with an annotation, bool [A, T, D].
        is_ignored: True for one that counts neither as right nor as wrong, bool [A, T, D].
        n_truths: number of annotations that count, int64 [A].
    """

    is_matched: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    n_truths: NDArray[np.int64]


def crowd_ious(
    shared: NDArray[np.int64], areas: NDArray[np.int64], truth_areas: NDArray[np.int64], is_crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Compute the IoU of predictions with annotations; with a crowd region, the share of the prediction inside it.

    Args:
        shared: intersections in pixels, int64 [D, G].
        areas: pixels of the predictions, int64 [D].
        truth_areas: pixels of the annotations, int64 [G].
        is_crowd: True for a crowd region, bool [G].

    Returns:
        float64 [D, G] in [0, 1]; 0 where both masks are empty.
    """
    union = np.where(is_crowd, areas[:, None], areas[:, None] + truth_areas - shared)
    ious: NDArray[np.float64] = shared / np.maximum(union, 1)
    return ious


def match_detections(
    ious: NDArray[np.float64], areas: NDArray[np.float64], truth_areas: NDArray[np.float64], is_crowd: NDArray[np.bool_]
) -> Matches:
    """Match the predictions of one image by COCO's rule.

    Args:
        ious: float64 [D, G], predictions best first, annotations in the order of the file.
        areas: areas of the predictions in pixels, float64 [D]; they put those without a match in or out of range.
        truth_areas: areas of the annotations as stated by the file, float64 [G].
        is_crowd: bool [G].

    Source: pycocotools, COCOeval.evaluateImg, except that it takes an annotation of id 0 for no match.
    """
    rows, columns = np.nonzero(ious >= min(IOU_THRESHOLDS[0], _ALMOST_ONE))
    starts = np.searchsorted(rows, np.arange(len(ious) + 1))
    is_ignored_truth = _ignored_truths(truth_areas, is_crowd)
    matched, ignored = _matched(ious, starts, columns, IOU_THRESHOLDS, is_ignored_truth, is_crowd)
    ignored |= ~matched & _out_of_range(areas)[:, None, :]
    return Matches(matched, ignored, (~is_ignored_truth).sum(1))


def match_detections_reference(
    ious: NDArray[np.float64], areas: NDArray[np.float64], truth_areas: NDArray[np.float64], is_crowd: NDArray[np.bool_]
) -> Matches:
    """`match_detections` in plain loops over all pairs."""
    n_found, n_truths = ious.shape
    is_ignored_truth = _ignored_truths(truth_areas, is_crowd)
    matched = np.zeros((len(AREA_RANGES), len(IOU_THRESHOLDS), n_found), bool)
    ignored = np.zeros_like(matched)
    for a, t in np.ndindex(len(AREA_RANGES), len(IOU_THRESHOLDS)):
        taken: set[int] = set()
        for d in range(n_found):
            best, best_iou = -1, min(IOU_THRESHOLDS[t], _ALMOST_ONE)
            for counts in (True, False):  # ignored annotations only if no other matches
                for g in range(n_truths):
                    is_free = g not in taken or is_crowd[g]
                    if is_ignored_truth[a, g] != counts and is_free and ious[d, g] >= best_iou:
                        best, best_iou = g, ious[d, g]
                if best >= 0:
                    break
            if best >= 0:
                taken.add(best)
                matched[a, t, d], ignored[a, t, d] = True, is_ignored_truth[a, best]
    ignored |= ~matched & _out_of_range(areas)[:, None, :]
    return Matches(matched, ignored, (~is_ignored_truth).sum(1))


def _ignored_truths(truth_areas: NDArray[np.float64], is_crowd: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True for annotations that do not count, bool [A, G]."""
    return is_crowd | _out_of_range(truth_areas)


def _out_of_range(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True for areas outside of each range, bool [A, N]."""
    outside: NDArray[np.bool_] = (areas < AREA_RANGES[:, :1]) | (areas > AREA_RANGES[:, 1:])
    return outside


@numba.njit(cache=True, nogil=True)
def _matched(
    ious: NDArray[np.float64],
    starts: NDArray[np.int64],
    columns: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    is_ignored_truth: NDArray[np.bool_],
    is_crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match prediction d with the annotations columns[starts[d] : starts[d + 1]], pairs above the lowest threshold.

    Returns:
        Predictions with a match, and those matched with an ignored annotation, both bool [A, T, D].
    """
    n_ranges, n_truths = is_ignored_truth.shape
    matched = np.zeros((n_ranges, thresholds.shape[0], ious.shape[0]), np.bool_)
    ignored = np.zeros_like(matched)
    for a in range(n_ranges):
        for t in range(thresholds.shape[0]):
            is_taken = np.zeros(n_truths, np.bool_)
            for d in range(ious.shape[0]):
                best, best_iou = -1, min(thresholds[t], _ALMOST_ONE)
                best_ignored, best_ignored_iou = -1, best_iou
                for k in range(starts[d], starts[d + 1]):
                    g = columns[k]
                    if is_taken[g] and not is_crowd[g]:
                        continue
                    if is_ignored_truth[a, g]:
                        if ious[d, g] >= best_ignored_iou:
                            best_ignored, best_ignored_iou = g, ious[d, g]
                    elif ious[d, g] >= best_iou:
                        best, best_iou = g, ious[d, g]
                if best < 0:
                    best = best_ignored
                if best >= 0:
                    is_taken[best] = True
                    matched[a, t, d], ignored[a, t, d] = True, is_ignored_truth[a, best]
    return matched, ignored
