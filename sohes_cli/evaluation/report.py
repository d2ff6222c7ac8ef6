"""Scores as a table and as JSON, and notes on the images and masks behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from sohes_cli.evaluation.average_recall import RANKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

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
    """Return all scores, in [0, 1] or null where nothing counts, with their counts."""
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
        "masks_per_image": evaluation.masks / max(evaluation.images_with_predictions, 1),
        "images_past_1000_masks": evaluation.images_past_limit,
        "masks_without_score": evaluation.unscored,
        "masks_repeated": evaluation.repeated,
        "all_images": evaluation.all_images.summary(),
        "images_with_predictions_only": evaluation.predicted_images.summary(),
        "hierarchy": evaluation.hierarchy and evaluation.hierarchy.summary(),
        "forest": evaluation.forest and evaluation.forest.summary(),
    }


def notes(truth: LabelSource, comparison: Comparison) -> list[str]:
    """List caveats of the scores: unmatched images, pairing by stem, masks past the 1,000th, unscored or repeated."""
    evaluation, pairing, path = comparison.evaluation, comparison.pairing, comparison.predicted.path
    lines = []
    if pairing.by == "stem":
        lines.append(f"{path}: images were paired by the stem of their names, as no full name agrees.")
    if pairing.missing:
        missing = f"{len(pairing.missing)} of {len(truth.images)} annotated images ({_some(pairing.missing)})"
        lines.append(
            f"{path} has no predictions for {missing}: their annotations count as missed. "
            "The columns `predicted only` leave these images out."
        )
    if pairing.unknown:
        unknown = f"{len(pairing.unknown)} of its images"
        lines.append(f"{path}: {unknown} are not annotated and not scored ({_some(pairing.unknown)}).")
    if evaluation.images_past_limit:
        past_limit = f"{evaluation.images_past_limit} images have more than 1,000 masks"
        lines.append(f"{path}: {past_limit}; the best-scoring 1,000 count.")
    if evaluation.unscored:
        unscored = f"{evaluation.unscored} masks have no score and count as 1"
        lines.append(f"{path}: {unscored}, so that among them the order of the file decides.")
    if evaluation.first_repeated is not None:
        index, annotation = evaluation.first_repeated
        lines.append(
            f"{path}: {evaluation.repeated} masks repeat an earlier one in mask, score and class "
            f"(first: annotation {annotation} of {truth.images[index]}); they count like any other."
        )
    return lines


def _some(images: Sequence[ImageEntry]) -> str:
    return ", ".join(map(str, images[:_SHOWN])) + (", ..." if len(images) > _SHOWN else "")


def print_table(truth: LabelSource, comparisons: Sequence[Comparison]) -> None:
    """Print the scores in percent: a column for each set of predictions, and a second one if it lacks images."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    first = comparisons[0].evaluation
    crowds = f", {first.crowds} crowd regions" if first.crowds else ""
    typer.echo(f"{truth.path}: {first.images} images, {first.annotations} masks{crowds}")
    table = Table()
    table.add_column("percent", no_wrap=True)
    columns: list[tuple[Evaluation, MaskScores, int]] = []  # with the number of images
    for comparison in comparisons:
        evaluation = comparison.evaluation
        name = Text(comparison.name)  # brackets in it are no markup
        table.add_column(name, justify="right", overflow="fold", min_width=_CELL)
        columns.append((evaluation, evaluation.all_images, evaluation.images))
        if comparison.pairing.missing:
            table.add_column("predicted only", justify="right", min_width=_CELL)
            columns.append((evaluation, evaluation.predicted_images, evaluation.images_with_predictions))
    _add_rows(table, columns)
    console = Console(highlight=False)
    width = _LABEL + _CELL * len(columns) + 3 * (len(columns) + 1) + 1
    console.width = max(console.width, width)  # rather a long line than cut numbers
    console.print(table)


def _add_rows(table: Table, columns: list[tuple[Evaluation, MaskScores, int]]) -> None:
    """Add scores, and counts below them."""
    hierarchies = [e.hierarchy.summary() if e.hierarchy else {} for e, _, _ in columns]
    forests = [e.forest.summary() if e.forest else {} for e, _, _ in columns]
    for label, key in _ROWS:
        table.add_row(label, *(_number(scores.summary()[key], 100) for _, scores, _ in columns))
    if any(hierarchies):
        table.add_section()
        for label, key in _HIERARCHY_ROWS:
            table.add_row(label, *(_number(hierarchy.get(key), 100) for hierarchy in hierarchies))
    table.add_section()
    table.add_row("images", *(str(images) for _, _, images in columns))
    table.add_row("masks an image", *(_number(e.masks / max(images, 1)) for e, _, images in columns))
    if any(forests):
        depths = (f"{_number(f['mean_depth'])} / {f['max_depth']:.0f}" if f else "-" for f in forests)
        table.add_row("depth, mean / max", *depths)
        table.add_row("parts of a whole", *(_number(forest.get("branching")) for forest in forests))


def _number(value: float | None, scale: int = 1) -> str:
    return "-" if value is None else f"{scale * value:.1f}"
