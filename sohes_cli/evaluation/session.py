"""One run of `sohes evaluate`: predictions against a ground truth, image by image, over several processes.

Only the places of an image's annotations in the files travel to the processes, which read and compare them, and only counts come back,
so that memory is bounded whatever the number of masks.
"""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import typer
from tqdm import tqdm

from sohes_cli.errors import DatasetError, SohesError
from sohes_cli.evaluation.average_recall import Evaluation, evaluation_of
from sohes_cli.evaluation.image_scores import MOST_PROBLEMS, ImageOutcome, ImageTask, score_image
from sohes_cli.evaluation.pairing import ImageMatch, Pairing, pair_images
from sohes_cli.labels.sources import LabelSource, open_source
from sohes_cli.runs.processes import (
    available_cores,
    children_killed_on,
    end_with_parent,
    first_finished,
    result_of,
    submitted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = ["Comparison", "compare_predictions", "evaluate_predictions"]

_WORTH_A_PROCESS = 64  # images; starting a process takes longer than scoring fewer
_AHEAD = 4  # tasks a process that wait for it


@dataclass(frozen=True)
class Comparison:
    """Predictions, how their images were paired with the annotated ones, their scores, and a name that tells them from others."""

    predicted: LabelSource
    pairing: Pairing
    evaluation: Evaluation
    name: str


def evaluate_predictions(
    truth: LabelSource, prediction: Path, match: ImageMatch = ImageMatch.auto, workers: int = 0, quiet: bool = False
) -> Comparison:
    """Score the predictions of one file or label folder, as `compare_predictions` does; raises its failure."""
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
    """Score the predictions of one or more files or label folders; all are opened and paired before the first is scored.

    Args:
        truth: the ground truth, an annotation file.
        predictions: label folders, COCO annotation files or COCO result files.
        match: how images are paired.
        workers: processes, 0 for one a core.
        quiet: show no progress bar even on a terminal.

    Returns:
        The comparisons, and why the other predictions have no scores: their masks or the annotated ones are damaged, each of which
        is written to stderr by file and id, or every score is 0.

    Raises:
        SohesError: if a file cannot be read, or its images are not those of the ground truth.
    """
    paired = [(source, pair_images(truth, source, match)) for source in map(open_source, predictions)]
    comparisons: list[Comparison] = []
    failures: list[DatasetError] = []
    for (source, pairing), name in zip(paired, _names(predictions), strict=True):
        try:
            comparisons.append(Comparison(source, pairing, _evaluated(truth, source, pairing, workers, quiet), name))
        except DatasetError as error:
            failures.append(error)
    return comparisons, failures


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of files and folders; full paths where two would have one name."""
    names = [path.name for path in paths]
    return names if all(names) and len(set(names)) == len(set(paths)) else [str(path) for path in paths]


def _evaluated(truth: LabelSource, predicted: LabelSource, pairing: Pairing, workers: int, quiet: bool) -> Evaluation:
    tasks = _tasks(truth, predicted, pairing)
    outcomes: list[ImageOutcome | None] = [None] * len(truth.images)
    with tqdm(
        total=len(outcomes),
        desc=predicted.path.name,
        unit="image",
        disable=quiet or not sys.stderr.isatty(),
        leave=False,
    ) as progress:
        for outcome in _scored(tasks, _processes(workers, len(outcomes))):
            outcomes[outcome.index] = outcome
            progress.update()
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


def _scored(tasks: Iterator[ImageTask], workers: int) -> Iterable[ImageOutcome]:
    """The outcomes, in any order."""
    if workers <= 1:
        yield from map(score_image, tasks)
        return
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        with children_killed_on(BaseException):
            yield from _windowed(executor, tasks, workers * _AHEAD)
    except BrokenProcessPool as error:
        raise SohesError(
            "A worker process was killed, most likely for want of memory.", "Run again with fewer --workers."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _windowed(executor: ProcessPoolExecutor, tasks: Iterator[ImageTask], window: int) -> Iterator[ImageOutcome]:
    """The outcomes in order of completion, with no more than `window` tasks under way."""
    pending: set[Future[ImageOutcome]] = set()
    while True:
        pending |= {submitted(executor, score_image, task) for task in islice(tasks, window - len(pending))}
        if not pending:
            return
        finished, pending = first_finished(pending)
        for future in finished:
            yield result_of(future)


def _refuse_problems(outcomes: list[ImageOutcome]) -> None:
    count = sum(outcome.n_problems for outcome in outcomes)
    if not count:
        return
    shown = list(islice((problem for outcome in outcomes for problem in outcome.problems), MOST_PROBLEMS))
    for problem in shown:
        typer.echo(problem, err=True)
    if count > len(shown):
        typer.echo(f"... and {count - len(shown)} more.", err=True)
    n_images = sum(bool(outcome.problems) for outcome in outcomes)
    raise DatasetError(
        f"{count} problem{'s' * (count != 1)} in the masks of {n_images} of {len(outcomes)} images; no score was computed.",
        "The messages above name each by file and id. Mend or remove these masks.",
    )


def _all_zero(truth: LabelSource, predicted: LabelSource, pairing: Pairing, evaluation: Evaluation) -> DatasetError:
    if not evaluation.annotations:
        return DatasetError(
            f"{truth.path} holds no masks that count.", "Give the annotation file of your images with --gt."
        )
    if not evaluation.masks:
        return DatasetError(
            f"{predicted.path} holds no masks for the images of {truth.path}.",
            "Run `sohes explore` or your model first.",
        )
    return DatasetError(
        f"Every score of {predicted.path} is 0: none of its {evaluation.masks} masks overlaps an annotation by half.",
        f"The usual cause is that images were paired wrongly (here by {pairing.by}): see --match, and look at both: `sohes view --html`.",
    )
