"""The last stage: the photographs of the ground truth, labeled by each phase, against its annotations.

The labels of a model are those of `sohes segment`, for the listed photographs alone. Labels of phase 1 are there already, unless the
ground truth has photographs of its own, which are then labeled in the same way.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sohes_cli.evaluation.report import as_json, notes
from sohes_cli.evaluation.session import compare_predictions
from sohes_cli.images.image_list import listed_images
from sohes_cli.inference.inputs import ImageSet
from sohes_cli.inference.methods import ModelMethod
from sohes_cli.inference.session import Delivery, segment_images
from sohes_cli.model.location import find_model
from sohes_cli.pipeline.stages import label_folder
from sohes_cli.pipeline.work import completed
from sohes_cli.runs.files import file_sha256, write_atomically
from sohes_cli.settings import to_plain
from sohes_cli.training.phases import PHASES

if TYPE_CHECKING:
    from sohes_cli.pipeline.checks import GroundTruth
    from sohes_cli.pipeline.stages import Job
    from sohes_cli.pipeline.work import Work

__all__ = ["evaluated_with", "label_photographs", "score_labels", "write_image_list"]


def evaluated_with(job: Job, truth: GroundTruth) -> dict[str, Any]:
    """What decides the labels, and, with the annotations, the scores; ready for JSON."""
    folder, config = job.folder, job.config
    return {
        "labels": {
            "images": folder.relative(truth.images),
            "explore": to_plain(config.explore) if job.inputs.truth_images else None,
            "models": {phase: file_sha256(find_model(folder.run(phase))) for phase in PHASES},
            "segment": config.of_segment(),
        },
        "annotations": {"file": folder.relative(truth.source.path), "sha256": file_sha256(truth.source.path)},
    }


def write_image_list(job: Job, truth: GroundTruth) -> None:
    """Write the names of the photographs that the ground truth lists, one a line."""
    write_atomically(job.folder.image_list, [f"{name}\n".encode() for name in truth.names])


def label_photographs(job: Job, work: Work) -> bool:
    """Label the listed photographs with both models, and with phase 1 if it has not seen them; all processes together.

    Args:
        job: of the pipeline, whose folder holds the models and the list.
        work: told of what was done.

    Returns:
        Whether all were done; false after Ctrl-C or SIGTERM, and the same call continues.

    Raises:
        SohesError: if labeling cannot start or go on.
    """
    images, folder = job.inputs.truth_images or job.inputs.images, job.folder

    def explore() -> bool:
        return label_folder(job, images, folder.evaluated("explore"), work, folder.image_list)

    if job.inputs.truth_images is not None and not completed(explore, job.accelerator):
        return False
    return all(completed(partial(_segment, job, images, phase, work), job.accelerator) for phase in PHASES)


def _segment(job: Job, images: Path, phase: str, work: Work) -> bool:
    """Label the listed photographs with the model of a phase."""
    listing = listed_images(images, job.folder.image_list)
    found = ImageSet(Path(os.path.abspath(images)), listing.names, listing.unreadable)  # noqa: PTH100 (a link keeps its own name)
    method = ModelMethod.load(job.folder.run(phase), device=job.device, **job.config.of_segment())
    delivery = Delivery(job.folder.evaluated(phase), as_json=True, pictures=False)
    return segment_images(found, method, delivery, at_end=work.take_labels)


def score_labels(job: Job, truth: GroundTruth, work: Work) -> dict[str, dict[str, Any]]:
    """Score the labels of each phase, as `sohes evaluate` does; the main process alone.

    Args:
        job: of the pipeline.
        truth: the ground truth.
        work: told why labels have no scores.

    Returns:
        The scores by phase, as `sohes evaluate --json` gives them, but for phases whose labels have none.

    Raises:
        SohesError: if labels cannot be read, or are not of the photographs of the ground truth.
    """
    explored = job.folder.labels if job.inputs.truth_images is None else job.folder.evaluated("explore")
    phases = {explored: "explore"} | {job.folder.evaluated(phase): phase for phase in PHASES}
    comparisons, failures = compare_predictions(truth.source, list(phases), workers=job.processes, quiet=job.quiet)
    for comparison in comparisons:
        for line in notes(truth.source, comparison):
            typer.echo(f"Note: {line}", err=True)
    work.worked = True
    work.failed += [str(failure) for failure in failures]
    scores = as_json(truth.source, comparisons)["predictions"] if comparisons else []
    return {phases[Path(found.pop("path"))]: found for found in scores}
