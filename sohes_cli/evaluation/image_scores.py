"""Scores of one image: its predicted and annotated masks are read, checked and matched, and only counts are kept.

The outcome is small for any image: right predictions by rank, the best hundred with their scores (average
precision orders them across images), and the counts of the hierarchy. So memory grows with neither masks nor pixels.
Damaged masks are named by file and id, and their image has no counts.
"""

from __future__ import annotations

import reprlib
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sohes_kernels import run_intersections

from sohes_cli.errors import SohesError
from sohes_cli.evaluation.hierarchy_scores import ForestCounts, HierarchyCounts
from sohes_cli.evaluation.matching import crowd_ious, match_detections
from sohes_cli.labels.sources import ImageId
from sohes_cli.masks.segmentations import parse_segmentations
from sohes_cli.structures import Forest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from sohes_kernels import RunMasks

    from sohes_cli.labels.sources import ImageEntry, Location

__all__ = ["LARGEST_RANK", "MOST_PROBLEMS", "PRECISION_RANK", "ImageOutcome", "ImageTask", "score_image"]

LARGEST_RANK = 1000
"""Maximum number of predictions per image, the best-scoring ones."""

PRECISION_RANK = 100
"""Maximum number of predictions per image for average precision, as in COCO."""

MOST_PROBLEMS = 20
"""Maximum number of messages per image, so that a file of bad masks only does not fill the memory."""

_LARGEST_CATEGORY = 2**63 - 1


@dataclass(frozen=True)
class ImageTask:
    """Annotations and predictions of one image.

    Args:
        index: index of the image in the ground truth.
        image: the image, with its size.
        truth: its annotations.
        predicted: its predictions; None if the predictions do not list the image.
        default_score: score of a prediction without one; None if that is an error.
    """

    index: int
    image: ImageEntry
    truth: Location
    predicted: Location | None
    default_score: float | None = None


@dataclass(frozen=True)
class ImageOutcome:
    """Contribution of one image to the scores; T thresholds, D predictions, E = min(D, 100) of them for precision.

    Args:
        index: index of the image in the ground truth.
        problems: defects of its masks, a sentence each, at most `MOST_PROBLEMS`; with any, the rest is empty.
        n_problems: number of all defects.
        has_predictions: True if the predictions list the image, with masks or without.
        n_predictions: number of its predictions, including those past the 1,000th.
        n_unscored: number of predictions with the default score.
        n_repeated: number of predictions that equal an earlier one in mask, score and class.
        first_repeated: id or number of the first of these.
        n_crowds: number of crowd regions.
        n_truths: numbers of annotations that count: all, small, medium, large, int64 [4].
        hits: True for right predictions, all sizes, bool [T, D].
        hits_by_size: numbers of right predictions on small, medium and large annotations, int64 [3, T].
        scores: float64 [E], descending.
        is_matched: all sizes, bool [T, E].
        is_ignored: all sizes, bool [T, E].
        has_parents: True if a prediction has the key `parent`; otherwise the predicted forest is flat.
        hierarchy: counts of part-of pairs.
        forest: counts of the predicted forest.
        truth_forest: counts of the annotated forest.
    """

    index: int
    problems: list[str] = field(default_factory=list)
    n_problems: int = 0
    has_predictions: bool = False
    n_predictions: int = 0
    n_unscored: int = 0
    n_repeated: int = 0
    first_repeated: str = ""
    n_crowds: int = 0
    n_truths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    hits: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((10, 0), bool))
    hits_by_size: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 10), np.int64))
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    is_matched: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((10, 0), bool))
    is_ignored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((10, 0), bool))
    has_parents: bool = False
    hierarchy: HierarchyCounts = field(default_factory=HierarchyCounts)
    forest: ForestCounts = field(default_factory=ForestCounts)
    truth_forest: ForestCounts = field(default_factory=ForestCounts)


@dataclass(frozen=True)
class _Masks:
    """Masks and annotation objects of one side; `forest` is flat if no annotation has the key `parent`."""

    runs: RunMasks
    data: list[dict[str, Any]]
    forest: Forest
    has_parents: bool
    problems: list[str]


def score_image(task: ImageTask) -> ImageOutcome:
    """Read, check and match the masks of one image."""
    try:
        truth = _read(task.image, task.truth)
        predicted = _read(task.image, task.predicted) if task.predicted is not None else None
    except SohesError as error:
        return ImageOutcome(task.index, [str(error)], 1)
    problems = truth.problems + _truth_problems(task, truth.data)
    if predicted is not None and task.predicted is not None:
        problems += predicted.problems + _score_problems(task.predicted, task, predicted.data)
    if problems:
        return ImageOutcome(task.index, problems[:MOST_PROBLEMS], len(problems))
    return _compare(task, truth, predicted)


def _compare(task: ImageTask, truth: _Masks, predicted: _Masks | None) -> ImageOutcome:
    order = np.argsort(_categories(truth.data), kind="stable")  # the order of pycocotools
    is_crowd = np.array([bool(truth.data[i].get("iscrowd")) for i in order], bool)
    truth_pixels = truth.runs.areas()[order]
    truth_areas = np.array([truth.data[i].get("area", a) for i, a in zip(order, truth_pixels, strict=True)], np.float64)
    scores = _scores(predicted, task.default_score)
    ranked = _ranked(predicted, scores)
    best = ranked[:LARGEST_RANK]
    runs = None if predicted is None else predicted.runs[best]
    areas = np.zeros(0, np.int64) if runs is None else runs.areas()
    shared = np.zeros((0, len(order)), np.int64) if runs is None else run_intersections(runs, truth.runs[order])
    ious = crowd_ious(shared, areas, truth_pixels, is_crowd)
    matches = match_detections(ious, areas.astype(np.float64), truth_areas, is_crowd)
    hits = matches.is_matched & ~matches.is_ignored
    truth_forest, rows = _without_crowds(truth, order, is_crowd)
    forest = Forest(()) if predicted is None else _reordered(predicted.forest, ranked)
    data = [] if predicted is None else predicted.data
    repeated = _repeated(data)
    return ImageOutcome(
        index=task.index,
        has_predictions=predicted is not None,
        n_predictions=len(data),
        n_unscored=sum("score" not in a for a in data),
        n_repeated=len(repeated),
        first_repeated=_name(data, repeated[0]) if repeated else "",
        n_crowds=int(is_crowd.sum()),
        n_truths=matches.n_truths,
        hits=hits[0],
        hits_by_size=hits[1:].sum(2),
        scores=scores[best][:PRECISION_RANK],
        is_matched=matches.is_matched[0, :, :PRECISION_RANK].copy(),
        is_ignored=matches.is_ignored[0, :, :PRECISION_RANK].copy(),
        has_parents=predicted is not None and predicted.has_parents,
        hierarchy=HierarchyCounts.of(ious[:, rows], forest, truth_forest),
        forest=ForestCounts.of(forest),
        truth_forest=ForestCounts.of(truth_forest),
    )


def _ranked(predicted: _Masks | None, scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank the predictions, best first; of equal scores by category, then position, as in pycocotools."""
    if predicted is None:
        return np.zeros(0, np.int64)
    return np.lexsort((_categories(predicted.data), -scores)).astype(np.int64)


def _scores(predicted: _Masks | None, default_score: float | None) -> NDArray[np.float64]:
    return np.array([a.get("score", default_score) for a in predicted.data] if predicted else [], np.float64)


def _categories(data: list[dict[str, Any]]) -> NDArray[np.int64]:
    ids = [a.get("category_id") for a in data]
    return np.array([i if isinstance(i, int) and abs(i) <= _LARGEST_CATEGORY else 0 for i in ids], np.int64)


def _repeated(data: list[dict[str, Any]]) -> list[int]:
    """Find the predictions that equal an earlier one in mask, score and class, as in results written twice."""
    counts = Counter(a["score"] for a in data if "score" in a)
    seen: set[str] = set()
    repeated = []
    for i, a in enumerate(data):
        if counts[a.get("score")] > 1:  # most scores occur once, which saves reading the mask
            key = str((a["score"], a.get("category_id"), a["segmentation"]))
            if key in seen:
                repeated.append(i)
            seen.add(key)
    return repeated


def _without_crowds(
    truth: _Masks, order: NDArray[np.int64], is_crowd: NDArray[np.bool_]
) -> tuple[Forest, NDArray[np.int64]]:
    """Return the annotated forest without crowd regions, and the column of each of its nodes in the IoU matrix."""
    columns = np.flatnonzero(~is_crowd)
    node = {int(order[column]): i for i, column in enumerate(columns)}
    parents = truth.forest.parents
    return Forest(tuple(node.get(parents[int(order[column])], -1) for column in columns)), columns


def _reordered(forest: Forest, ranked: NDArray[np.int64]) -> Forest:
    """Permute the nodes of a forest to the order of `ranked`."""
    node = {old: new for new, old in enumerate(ranked.tolist())}
    return Forest(tuple(node[p] if (p := forest.parents[old]) >= 0 else -1 for old in ranked.tolist()))


def _read(image: ImageEntry, location: Location) -> _Masks:
    data = location.load()
    runs, reasons = parse_segmentations([a.get("segmentation") for a in data], image.height, image.width)
    problems = _sentences(location, image, data, reasons.items())
    forest = Forest((-1,) * len(data))
    has_parents = any("parent" in a for a in data)
    if has_parents:
        try:
            forest = _forest(data)
        except ValueError as error:
            problems.append(f"{location.path}: {image}: {error}.")
    return _Masks(runs, data, forest, has_parents, problems)


def _forest(data: list[dict[str, Any]]) -> Forest:
    position: dict[Any, int] = {}
    for i, a in enumerate(data):
        if not isinstance(a.get("id"), ImageId) or a["id"] in position:
            raise ValueError(f"annotation id {a.get('id')!r} is no id or occurs twice, so that no `parent` can name it")
        position[a["id"]] = i
    for a in data:
        if a.get("parent") is not None and not (isinstance(a["parent"], ImageId) and a["parent"] in position):
            raise ValueError(f"annotation {a['id']} names the parent {a['parent']!r}, which this image does not have")
    return Forest(tuple(-1 if a.get("parent") is None else position[a["parent"]] for a in data))


def _truth_problems(task: ImageTask, data: list[dict[str, Any]]) -> list[str]:
    bad = [(i, "area") for i, a in enumerate(data) if not _is_finite(a.get("area", 0)) or a.get("area", 0) < 0]
    # the text "0" would be true
    bad += [(i, "iscrowd") for i, a in enumerate(data) if a.get("iscrowd", 0) not in (0, 1)]
    shown = [(i, f"its {key} is {reprlib.repr(data[i][key])}") for i, key in sorted(bad)]
    return _sentences(task.truth, task.image, data, shown)


def _score_problems(location: Location, task: ImageTask, data: list[dict[str, Any]]) -> list[str]:
    bad = [(i, a) for i, a in enumerate(data) if not _is_finite(a.get("score", task.default_score))]
    shown = [(i, f"its score is {reprlib.repr(a['score'])}" if "score" in a else "it has no score") for i, a in bad]
    return _sentences(location, task.image, data, shown)


def _sentences(
    location: Location, image: ImageEntry, data: list[dict[str, Any]], reasons: Iterable[tuple[int, str]]
) -> list[str]:
    return [f"{location.path}: annotation {_name(data, i)} of {image}: {reason}." for i, reason in reasons]


def _is_finite(value: Any) -> bool:
    """True for a number in the range of float64; an integer of JSON may have any size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _name(data: list[dict[str, Any]], index: int) -> str:
    """Id of an annotation, or its number among those of its image."""
    return str(data[index]["id"]) if "id" in data[index] else f"number {index + 1}"
