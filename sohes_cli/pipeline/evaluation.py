"""The last stage: labels of each phase on the photographs of the ground truth, scored against its annotations.

Each model labels the listed photographs, as in `sohes segment`. Labels of phase 1 exist already, unless the
photographs are those of another folder, which phase 1 then labels in the same way.
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
from sohes_cli.inference.session import OutputOptions, segment_images
from sohes_cli.model.location import find_model
from sohes_cli.pipeline.stages import completed, label_folder
from sohes_cli.runs.files import file_sha256, write_atomically
from sohes_cli.settings import to_plain
from sohes_cli.training.phases import PHASES

if TYPE_CHECKING:
    from sohes_cli.pipeline.checks import GroundTruth
    from sohes_cli.pipeline.stages import PipelineJob, StageWork

__all__ = ["evaluation_settings", "label_photographs", "score_labels", "write_image_list"]


def evaluation_settings(job: PipelineJob, truth: GroundTruth) -> dict[str, Any]:
    """Return all that decides the labels and, with the annotations, the scores; ready for JSON."""
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


def write_image_list(job: PipelineJob, truth: GroundTruth) -> None:
    """Write the names of the photographs that the ground truth lists, one a line."""
    write_atomically(job.folder.image_list, [f"{name}\n".encode() for name in truth.names])


def label_photographs(job: PipelineJob, work: StageWork) -> bool:
    """Label the listed photographs with both models, and with phase 1 where it has not; all processes together.

    Returns:
        True if all are done; False after Ctrl-C or SIGTERM, where the same call continues.

    Raises:
        SohesError: if labeling cannot start or go on.
    """
    images, folder = job.inputs.truth_images or job.inputs.images, job.folder
    explore = partial(label_folder, job, images, folder.evaluated("explore"), work, folder.image_list)
    if job.inputs.truth_images is not None and not completed(explore, job.accelerator):
        return False
    return all(completed(partial(_segment, job, images, phase, work), job.accelerator) for phase in PHASES)


def _segment(job: PipelineJob, images: Path, phase: str, work: StageWork) -> bool:
    listing = listed_images(images, job.folder.image_list)
    image_set = ImageSet(Path(os.path.abspath(images)), listing.names, listing.unreadable)  # noqa: PTH100 (keeps links)
    method = ModelMethod.load(job.folder.run(phase), device=job.device, **job.config.of_segment())
    options = OutputOptions(job.folder.evaluated(phase), as_json=True, pictures=False)
    return segment_images(image_set, method, options, at_end=work.add_labeling)


def score_labels(job: PipelineJob, truth: GroundTruth, work: StageWork) -> dict[str, dict[str, Any]]:
    """Score the labels of each phase; the main process alone. The reasons of labels without scores go to `work`.

    Returns:
        The scores by phase, as in `sohes evaluate --json`, for phases whose labels have scores.

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
