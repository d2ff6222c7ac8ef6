"""One run of `sohes evaluate`: predictions against a ground truth, image by image, in several processes.

Only the positions of an image's annotations in the files travel to the workers, and only counts come back, so memory is
bounded whatever the number of masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import typer

from sohes_cli.errors import DatasetError
from sohes_cli.evaluation.average_recall import Evaluation, evaluation_of
from sohes_cli.evaluation.image_scores import MOST_PROBLEMS, ImageOutcome, ImageTask, score_image
from sohes_cli.evaluation.pairing import ImageMatch, Pairing, pair_images
from sohes_cli.labels.sources import LabelSource, open_label_source
from sohes_cli.runs.pool import run_tasks
from sohes_cli.runs.processes import available_cores
from sohes_cli.runs.progress import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Comparison", "compare_predictions", "evaluate_predictions"]

_WORTH_A_PROCESS = 64  # images; starting a process takes longer than scoring fewer
_AHEAD = 4  # tasks in flight a process


@dataclass(frozen=True)
class Comparison:
    """Predictions, the pairing of their images with the annotated ones, their scores, and a name among others."""

    predicted: LabelSource
    pairing: Pairing
    evaluation: Evaluation
    name: str


def evaluate_predictions(
    truth: LabelSource, prediction: Path, match: ImageMatch = ImageMatch.auto, workers: int = 0, quiet: bool = False
) -> Comparison:
    """Score the predictions of one file or label folder; see `compare_predictions`, whose failure is raised."""
    comparisons, failures = compare_predictions(truth, [prediction], match, workers, quiet)
    if failures:
        raise failures[0]
    return comparisons[0]


def compare_predictions(
    truth: LabelSource,
    predictions: Sequence[Path],
    match: ImageMatch = ImageMatch.auto,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[list[Comparison], list[DatasetError]]:
    """Score the predictions of files or label folders; all are opened and paired before the first is scored.

    Args:
        truth: the ground truth, an annotation file.
        predictions: label folders, COCO annotation files or COCO result files.
        match: rule of pairing images.
        workers: processes, 0 for one a core.
        quiet: show no progress bar even on a terminal.

    Returns:
        The comparisons, and an error for each of the other predictions: masks are damaged, each of which is named on
        stderr by file and id, or every score is 0.

    Raises:
        SohesError: if a file cannot be read, or its images are not those of the ground truth.
    """
    paired = [(source, pair_images(truth, source, match)) for source in map(open_label_source, predictions)]
    comparisons: list[Comparison] = []
    failures: list[DatasetError] = []
    for (source, pairing), name in zip(paired, _names(predictions), strict=True):
        try:
            comparisons.append(Comparison(source, pairing, _evaluated(truth, source, pairing, workers, quiet), name))
        except DatasetError as error:
            failures.append(error)
    return comparisons, failures


def _names(paths: Sequence[Path]) -> list[str]:
    """Return short names of files and folders, or full paths if short ones repeat."""
    names = [path.name for path in paths]
    return names if all(names) and len(set(names)) == len(set(paths)) else [str(path) for path in paths]


def _evaluated(truth: LabelSource, predicted: LabelSource, pairing: Pairing, workers: int, quiet: bool) -> Evaluation:
    outcomes: list[ImageOutcome | None] = [None] * len(truth.images)
    tasks, processes = _tasks(truth, predicted, pairing), _processes(workers, len(outcomes))
    with ProgressBar(len(outcomes), "image", name=predicted.path.name, shown=not quiet, leave=False) as bar:

        def report(outcome: ImageOutcome) -> None:
            outcomes[outcome.index] = outcome
            bar.advance()

        hint = "Run again with fewer --workers."
        run_tasks(score_image, tasks, processes, report, in_flight=processes * _AHEAD, killed_hint=hint)
    done = [outcome for outcome in outcomes if outcome is not None]
    _refuse_problems(done)
    evaluation = evaluation_of(done)
    if evaluation.found_nothing:
        raise _all_zero(truth, predicted, pairing, evaluation)
    return evaluation


def _tasks(truth: LabelSource, predicted: LabelSource, pairing: Pairing) -> Iterator[ImageTask]:
    default_score = 1.0 if predicted.kind == "annotation file" else None
    for index, (image, location, partner) in enumerate(
        zip(truth.images, truth.locations, pairing.partners, strict=True)
    ):
        yield ImageTask(index, image, location, predicted.locations[partner] if partner >= 0 else None, default_score)


def _processes(workers: int, images: int) -> int:
    return min(workers or min(available_cores(), images // _WORTH_A_PROCESS), images)


def _refuse_problems(outcomes: list[ImageOutcome]) -> None:
    count, n_images = sum(o.n_problems for o in outcomes), sum(bool(o.problems) for o in outcomes)
    if not count:
        return
    shown = list(islice((problem for outcome in outcomes for problem in outcome.problems), MOST_PROBLEMS))
    for problem in shown:
        typer.echo(problem, err=True)
    if count > len(shown):
        typer.echo(f"... and {count - len(shown)} more.", err=True)
    problems = f"{count} problem{'s' * (count != 1)} in the masks of {n_images} of {len(outcomes)} images"
    hint = "The messages above name each by file and id. Mend or remove these masks."
    raise DatasetError(f"{problems}; no score was computed.", hint)


def _all_zero(truth: LabelSource, predicted: LabelSource, pairing: Pairing, evaluation: Evaluation) -> DatasetError:
    if not evaluation.annotations:
        hint = "Give the annotation file of your images with --gt."
        return DatasetError(f"{truth.path} holds no masks that count.", hint)
    if not evaluation.masks:
        message = f"{predicted.path} holds no masks for the images of {truth.path}."
        return DatasetError(message, "Run `sohes explore` or your model first.")
    return DatasetError(
        f"Every score of {predicted.path} is 0: none of its {evaluation.masks} masks overlaps an annotation by half.",
        f"The usual cause is that images were paired wrongly (here by {pairing.by}): see --match, and look at both: "
        "`sohes view --html`.",
    )
