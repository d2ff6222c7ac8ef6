"""The scores as a table for people and as JSON for programs, and notes on what they were computed from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from sohes_cli.evaluation.average_recall import RANKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.evaluation.average_recall import Evaluation, MaskScores
    from sohes_cli.evaluation.session import Comparison
    from sohes_cli.labels.sources import ImageEntry, LabelSource

__all__ = ["as_json", "notes", "print_table"]

_SHOWN = 5
_LABEL, _CELL = 17, 9  # characters of the longest row label and number
_ROWS = (
    *((f"AR@{k}", f"ar_{k}") for k in RANKS),
    ("AR@1000 small", "ar_small"),
    ("AR@1000 medium", "ar_medium"),
    ("AR@1000 large", "ar_large"),
    ("AP", "ap"),
    ("AP50", "ap_50"),
    ("AP75", "ap_75"),
)
_HIERARCHY_ROWS = (
    ("part-of recall", "part_of_recall"),
    ("  pairs found", "pairs_found"),
    ("  link recall", "link_recall"),
    ("link precision", "link_precision"),
)


def as_json(truth: LabelSource, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """All scores, in [0, 1], with the counts that they come from; null where nothing counts."""
    return {
        "ground_truth": str(truth.path),
        "dataset": truth.info.get("dataset"),
        "images": len(truth.images),
        "annotations": comparisons[0].evaluation.annotations,
        "crowd_regions": comparisons[0].evaluation.crowds,
        "forest": comparisons[0].evaluation.truth_forest.summary(),
        "predictions": [_prediction(comparison) for comparison in comparisons],
    }


def _prediction(comparison: Comparison) -> dict[str, Any]:
    evaluation, pairing = comparison.evaluation, comparison.pairing
    return {
        "path": str(comparison.predicted.path),
        "kind": comparison.predicted.kind,
        "matched_by": str(pairing.by),
        "images_with_predictions": evaluation.images_with_predictions,
        "images_without_predictions": len(pairing.missing),
        "images_not_annotated": len(pairing.unknown),
        "masks": evaluation.masks,
        "masks_per_image": _masks_per_image(evaluation),
        "images_past_1000_masks": evaluation.images_past_limit,
        "masks_without_score": evaluation.unscored,
        "masks_repeated": evaluation.repeated,
        "all_images": evaluation.all_images.summary(),
        "images_with_predictions_only": evaluation.predicted_images.summary(),
        "hierarchy": None if evaluation.hierarchy is None else evaluation.hierarchy.summary(),
        "forest": None if evaluation.forest is None else evaluation.forest.summary(),
    }


def _masks_per_image(evaluation: Evaluation) -> float:
    """Predicted masks of an image with predictions."""
    return evaluation.masks / max(evaluation.images_with_predictions, 1)


def notes(truth: LabelSource, comparison: Comparison) -> list[str]:
    """What a reader must know of the scores: images without partner or paired by stem, masks past the 1,000th, unscored or repeated."""
    evaluation, pairing, path = comparison.evaluation, comparison.pairing, comparison.predicted.path
    lines = []
    if pairing.by == "stem":
        lines.append(f"{path}: images were paired by the stem of their names, as no full name agrees.")
    if pairing.missing:
        lines.append(
            f"{path} has no predictions for {len(pairing.missing)} of {len(truth.images)} annotated images ({_some(pairing.missing)}): "
            "their annotations count as missed. The columns `predicted only` leave these images out."
        )
    if pairing.unknown:
        lines.append(
            f"{path}: {len(pairing.unknown)} of its images are not annotated and not scored ({_some(pairing.unknown)})."
        )
    if evaluation.images_past_limit:
        lines.append(
            f"{path}: {evaluation.images_past_limit} images have more than 1,000 masks; the best-scoring 1,000 count."
        )
    if evaluation.unscored:
        lines.append(
            f"{path}: {evaluation.unscored} masks have no score and count as 1, so that among them the order of the file decides."
        )
    if evaluation.first_repeated is not None:
        index, annotation = evaluation.first_repeated
        lines.append(
            f"{path}: {evaluation.repeated} masks repeat an earlier one in mask, score and class (first: annotation {annotation} of "
            f"{truth.images[index]}); they count like any other."
        )
    return lines


def _some(images: Sequence[ImageEntry]) -> str:
    return ", ".join(map(str, images[:_SHOWN])) + (", ..." if len(images) > _SHOWN else "")


def print_table(truth: LabelSource, comparisons: Sequence[Comparison]) -> None:
    """Print the scores in percent, a column for each set of predictions, and a second one where it lacks images."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    first = comparisons[0].evaluation
    crowds = f", {first.crowds} crowd regions" if first.crowds else ""
    typer.echo(f"{truth.path}: {first.images} images, {first.annotations} masks{crowds}")
    table = Table()
    table.add_column("percent", no_wrap=True)
    columns: list[tuple[Evaluation, MaskScores]] = []
    for comparison in comparisons:
        evaluation = comparison.evaluation
        table.add_column(
            Text(comparison.name), justify="right", overflow="fold", min_width=_CELL
        )  # as text: brackets are no markup
        columns.append((evaluation, evaluation.all_images))
        if comparison.pairing.missing:
            table.add_column("predicted only", justify="right", min_width=_CELL)
            columns.append((evaluation, evaluation.predicted_images))
    for label, key in _ROWS:
        table.add_row(label, *(_percent(scores.summary()[key]) for _, scores in columns))
    if any(evaluation.hierarchy for evaluation, _ in columns):
        table.add_section()
        for label, key in _HIERARCHY_ROWS:
            table.add_row(label, *(_percent(e.hierarchy.summary()[key] if e.hierarchy else None) for e, _ in columns))
    table.add_section()
    _add_counts(table, [(evaluation, scores is evaluation.all_images) for evaluation, scores in columns])
    console = Console(highlight=False)
    console.width = max(
        console.width, _LABEL + _CELL * len(columns) + 3 * (len(columns) + 1) + 1
    )  # a long line is better than cut numbers
    console.print(table)


def _add_counts(table: Any, columns: list[tuple[Evaluation, bool]]) -> None:
    """Rows that are no scores: images, masks an image, depth and branching."""
    table.add_row("images", *(str(e.images if of_all else e.images_with_predictions) for e, of_all in columns))
    table.add_row(
        "masks an image",
        *(f"{e.masks / max(e.images if of_all else e.images_with_predictions, 1):.1f}" for e, of_all in columns),
    )
    if any(e.forest for e, _ in columns):
        table.add_row("depth, mean / max", *(_depth(e) for e, _ in columns))
        table.add_row(
            "parts of a whole", *(_number(e.forest.summary()["branching"] if e.forest else None) for e, _ in columns)
        )


def _depth(evaluation: Evaluation) -> str:
    if evaluation.forest is None:
        return "-"
    summary = evaluation.forest.summary()
    return f"{_number(summary['mean_depth'])} / {summary['max_depth']:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
