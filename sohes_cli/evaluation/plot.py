"""Plot of an evaluation: AR against the number of masks per image, and AR by size, for each set of predictions.

Scores are over all annotated images. Published scores of the same data set, at 1,000 masks per image, are marks at the
right end of the curves.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.evaluation.image_scores import LARGEST_RANK
from sohes_cli.evaluation.published import check_published, published_ar, published_dataset
from sohes_cli.runs.files import PICTURE_SUFFIXES, check_output_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sohes_cli.evaluation.session import Comparison
    from sohes_cli.labels.sources import LabelSource

__all__ = ["check_plot", "draw_plot"]

_SIZES = (
    ("all", "ar_1000"),
    ("small\n< 32²", "ar_small"),
    ("medium\n32² - 96²", "ar_medium"),
    ("large\n> 96²", "ar_large"),
)
_INK, _FAINT = "#222222", "#d9d9d9"
# Okabe and Ito: distinct for color-blind readers too
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_LEAST_GAP = 0.045  # between two labels, as a fraction of the panel's height


def check_plot(path: Path, published: str | None) -> None:
    """Refuse a picture that cannot be drawn, before hours are spent on its scores.

    Raises:
        UsageError: if the format is unknown, the path is a folder or in one that is not writable, or the data set has
            no published scores.
    """
    check_output_name("--plot", path, PICTURE_SUFFIXES, "ar.png")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    is_folder = os.path.isdir(folder)  # noqa: PTH112 (a Path's method raises where the name is too long)
    if not is_folder or not os.access(folder, os.W_OK):
        hint = "Choose a folder that you may write to."
        raise UsageError(f"--plot {path}: nothing can be written in {folder}.", hint)
    if published is not None:
        check_published(published)


def draw_plot(path: Path, truth: LabelSource, comparisons: Sequence[Comparison], published: str | None = None) -> None:
    """Draw the scores and write the picture.

    Args:
        path: the file to write or replace, .png, .svg or .pdf.
        truth: the ground truth, whose `info` may name its data set.
        comparisons: the predictions and their scores.
        published: the data set whose published scores are shown; None for the one of the ground truth's `info`.

    Raises:
        StoreError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    dataset = published or published_dataset(truth.info)
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    curves, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_curves(curves, comparisons, published_ar(dataset))
    _draw_sizes(sizes, comparisons)
    evaluation = comparisons[0].evaluation
    name = dataset or truth.path.name
    title = f"{_plain(name)}: {evaluation.images} images, {evaluation.annotations} annotated masks"
    figure.suptitle(title, fontsize=11, color=_INK)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        hint = "Choose a folder that you may write to."
        raise StoreError(f"{path} cannot be written: {error.strerror}.", hint) from error


def _draw_curves(axes: Any, comparisons: Sequence[Comparison], published: dict[str, float]) -> None:
    _prepare(axes, "mask AR (%)", "masks an image, best first")
    ranks = np.arange(1, LARGEST_RANK + 1)
    for comparison, color in zip(comparisons, _cycled(len(comparisons)), strict=True):
        curve = 100 * comparison.evaluation.all_images.recall_curve
        axes.plot(ranks, curve, color=color, linewidth=2, label=_label(comparison))
    axes.set_xscale("log")
    axes.set_xlim(1, LARGEST_RANK * (4 if published else 1.15))
    highest = max([*published.values(), *(100 * float(c.evaluation.all_images.recall_curve[-1]) for c in comparisons)])
    axes.set_ylim(0, min(105.0, 1.12 * highest + 1))
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes.minorticks_off()
    _draw_published(axes, published)


def _draw_published(axes: Any, published: dict[str, float]) -> None:
    """Mark each method at 1,000 masks with its name; overlapping names are moved apart."""
    gap, height = _LEAST_GAP * axes.get_ylim()[1], -np.inf
    for method, score in sorted(published.items(), key=lambda item: item[1]):
        height = max(score, height + gap)
        axes.plot([LARGEST_RANK], [score], marker="D", markersize=4, color=_INK, linestyle="none", zorder=3)
        axes.annotate(
            f"{method} {score:.1f}",
            (LARGEST_RANK, score),
            (LARGEST_RANK * 1.25, height),
            va="center",
            fontsize=8,
            color=_INK,
            arrowprops={"arrowstyle": "-", "color": _FAINT, "shrinkA": 0, "shrinkB": 2},
        )
    if published:
        axes.plot([], [], marker="D", markersize=4, color=_INK, linestyle="none", label="published")


def _draw_sizes(axes: Any, comparisons: Sequence[Comparison]) -> None:
    _prepare(axes, "mask AR@1000 (%)", "size of the annotated mask (pixels)")
    width = 0.8 / len(comparisons)
    for k, (comparison, color) in enumerate(zip(comparisons, _cycled(len(comparisons)), strict=True)):
        summary = comparison.evaluation.all_images.summary()
        scores = [summary[key] for _, key in _SIZES]
        centers = np.arange(len(_SIZES)) + (k - (len(comparisons) - 1) / 2) * width
        bars = axes.bar(centers, [100 * (score or 0.0) for score in scores], 0.92 * width, color=color)
        labels = ["none" if score is None else f"{100 * score:.1f}" for score in scores]
        axes.bar_label(bars, labels, padding=2, fontsize=8 if len(comparisons) <= 3 else 6, color=_INK)
    axes.set_xticks(np.arange(len(_SIZES)), [label for label, _ in _SIZES])
    axes.margins(y=0.12)


def _prepare(axes: Any, vertical: str, horizontal: str) -> None:
    axes.set_ylabel(vertical, color=_INK)
    axes.set_xlabel(horizontal, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=_INK)


def _cycled(count: int) -> list[str]:
    return [_COLORS[k % len(_COLORS)] for k in range(count)]


def _label(comparison: Comparison) -> str:
    evaluation = comparison.evaluation
    per_image = evaluation.masks / max(evaluation.images_with_predictions, 1)
    name = _plain(comparison.name)
    hidden = " " * name.startswith("_")  # Matplotlib omits names with a leading underscore from the legend
    return f"{hidden}{name} ({per_image:.0f} masks an image)"


def _plain(text: str) -> str:
    """Escape a name that would be a formula, and replace bytes that are not UTF-8 by question marks."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")
