"""Class-agnostic mask AR and AP of many images, from the counts of each image.

    recall(t, k) = right predictions among the best k of each image, at IoU threshold t / annotations that count AR@k
    = mean of recall(t, k) over t = 0.50:0.05:0.95 AP           = mean over t and 101 recall levels of the best
    precision at or above that recall, 100 predictions an image

An image without predictions counts in full: its annotations are missed. A second set of scores leaves such images out;
precision and recall differ between the two in the number of annotations alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sohes_cli.evaluation.hierarchy_scores import ForestCounts, HierarchyCounts
from sohes_cli.evaluation.image_scores import LARGEST_RANK
from sohes_cli.evaluation.matching import IOU_THRESHOLDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sohes_cli.evaluation.image_scores import ImageOutcome

__all__ = ["RANKS", "Evaluation", "MaskScores", "average_precision", "evaluation_of"]

RANKS = (1, 10, 100, 1000)
"""Numbers of masks per image at which AR is reported."""

_RECALL_LEVELS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class MaskScores:
    """Scores in [0, 1]; None where no annotation counts.

    Args:
        recall_curve: AR@k for k = 1..1000, float64 [1000].
        ar: AR at each of `RANKS`.
        ar_small: AR@1000 on annotations up to 32^2 pixels.
        ar_medium: between 32^2 and 96^2 pixels.
        ar_large: from 96^2 pixels on.
        ap: average precision at 100 masks per image, over all thresholds.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
    """

    recall_curve: NDArray[np.float64]
    ar: dict[int, float | None]
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    ap: float | None
    ap50: float | None
    ap75: float | None

    def summary(self) -> dict[str, float | None]:
        """Return the scores by name, without the curve."""
        by_size = {"ar_small": self.ar_small, "ar_medium": self.ar_medium, "ar_large": self.ar_large}
        precision = {"ap": self.ap, "ap_50": self.ap50, "ap_75": self.ap75}
        return {f"ar_{k}": v for k, v in self.ar.items()} | by_size | precision


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of predictions.

    Args:
        images: number of annotated images.
        images_with_predictions: number of those listed in the predictions, with masks or without.
        annotations: number of annotated masks without crowd regions.
        crowds: number of crowd regions.
        masks: number of predicted masks of annotated images, including those past the 1,000th of an image.
        images_past_limit: number of images with more than 1,000 predictions.
        unscored: number of predicted masks without a score, which count as 1.
        repeated: number of predicted masks that equal an earlier one of their image in mask, score and class.
        first_repeated: index of the first image with such masks, and the id or number of the first of them; None
            without any.
        all_images: scores over all annotated images.
        predicted_images: scores over those with predictions.
        hierarchy: counts of part-of pairs; None without `parent` in the predictions or without annotated pairs.
        forest: counts of the predicted forests; None without `parent` in the predictions.
        truth_forest: counts of the annotated forests.
    """

    images: int
    images_with_predictions: int
    annotations: int
    crowds: int
    masks: int
    images_past_limit: int
    unscored: int
    repeated: int
    first_repeated: tuple[int, str] | None
    all_images: MaskScores
    predicted_images: MaskScores
    hierarchy: HierarchyCounts | None
    forest: ForestCounts | None
    truth_forest: ForestCounts

    @property
    def found_nothing(self) -> bool:
        """True if no prediction matches any annotation."""
        return not self.all_images.recall_curve.any()


def evaluation_of(outcomes: Sequence[ImageOutcome]) -> Evaluation:
    """Sum the outcomes of all annotated images, in the order of their ids, which decides between equal scores."""
    predicted = [o for o in outcomes if o.has_predictions]
    hierarchy, forest, truth_forest = _hierarchy(outcomes)
    return Evaluation(
        images=len(outcomes),
        images_with_predictions=len(predicted),
        annotations=int(sum(o.n_truths[0] for o in outcomes)),
        crowds=sum(o.n_crowds for o in outcomes),
        masks=sum(o.n_predictions for o in outcomes),
        images_past_limit=sum(o.n_predictions > LARGEST_RANK for o in outcomes),
        unscored=sum(o.n_unscored for o in outcomes),
        repeated=sum(o.n_repeated for o in outcomes),
        first_repeated=next(((o.index, o.first_repeated) for o in outcomes if o.n_repeated), None),
        all_images=_mask_scores(outcomes),
        predicted_images=_mask_scores(predicted),
        hierarchy=hierarchy,
        forest=forest,
        truth_forest=truth_forest,
    )


def average_precision(
    scores: NDArray[np.float64], is_matched: NDArray[np.bool_], is_ignored: NDArray[np.bool_], n_truths: int
) -> NDArray[np.float64]:
    """Compute the average precision at each IoU threshold.

    Args:
        scores: scores of the predictions of all images, in the order that decides between equal ones, float64 [D].
        is_matched: True for predictions with an annotation, bool [T, D].
        is_ignored: True for predictions that do not count, bool [T, D].
        n_truths: number of annotations that count, at least 1.

    Returns:
        float64 [T].

    Source: pycocotools, COCOeval.accumulate.
    """
    order = np.argsort(-scores, kind="stable")
    precisions = np.zeros(len(is_matched))
    for t in range(len(is_matched)):
        counts = ~is_ignored[t, order]
        right = np.cumsum(is_matched[t, order] & counts, dtype=np.float64)
        wrong = np.cumsum(~is_matched[t, order] & counts, dtype=np.float64)
        precision = right / (right + wrong + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or above
        reached = np.searchsorted(right / n_truths, _RECALL_LEVELS, side="left")
        precisions[t] = np.append(envelope, 0.0)[np.minimum(reached, len(envelope))].mean()
    return precisions


def _mask_scores(outcomes: Sequence[ImageOutcome]) -> MaskScores:
    n_truths = np.sum([o.n_truths for o in outcomes], axis=0) if outcomes else np.zeros(4, np.int64)
    hits = np.zeros((len(IOU_THRESHOLDS), LARGEST_RANK), np.int64)
    for o in outcomes:
        hits[:, : o.hits.shape[1]] += o.hits
    curve = (np.cumsum(hits, axis=1) / max(n_truths[0], 1)).mean(0)
    by_size = np.sum([o.hits_by_size for o in outcomes], axis=0) if outcomes else np.zeros((3, len(IOU_THRESHOLDS)))
    small, medium, large = (float(np.mean(by_size[i] / n)) if (n := n_truths[1 + i]) else None for i in range(3))
    precision = _precision(outcomes, int(n_truths[0])) if n_truths[0] else None
    return MaskScores(
        recall_curve=curve,
        ar={k: float(curve[k - 1]) if n_truths[0] else None for k in RANKS},
        ar_small=small,
        ar_medium=medium,
        ar_large=large,
        ap=None if precision is None else float(precision.mean()),
        ap50=None if precision is None else float(precision[0]),
        ap75=None if precision is None else float(precision[5]),
    )


def _precision(outcomes: Sequence[ImageOutcome], n_truths: int) -> NDArray[np.float64]:
    scores = np.concatenate([o.scores for o in outcomes])
    is_matched = np.concatenate([o.is_matched for o in outcomes], axis=1)
    return average_precision(scores, is_matched, np.concatenate([o.is_ignored for o in outcomes], axis=1), n_truths)


def _hierarchy(outcomes: Sequence[ImageOutcome]) -> tuple[HierarchyCounts | None, ForestCounts | None, ForestCounts]:
    """Sum the counts of all images; annotated pairs of images without predictions are missed."""
    pairs, forest, truth_forest = HierarchyCounts(), ForestCounts(), ForestCounts()
    for o in outcomes:
        pairs.add(o.hierarchy)
        forest.add(o.forest)
        truth_forest.add(o.truth_forest)
    has_parents = any(o.has_parents for o in outcomes)
    return pairs if has_parents and pairs.pairs else None, forest if has_parents else None, truth_forest
