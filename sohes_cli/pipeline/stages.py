"""The three phases as stages of a pipeline: each calls the session of its own command, which continues what is there."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import torch
from threadpoolctl import threadpool_limits

from sohes_cli.explore.session import explore_folder
from sohes_cli.pipeline.work import completed
from sohes_cli.training.session import Sources, corrected_run, train_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from accelerate import Accelerator

    from sohes_cli.pipeline.config import PipelineConfig
    from sohes_cli.pipeline.folder import PipelineFolder
    from sohes_cli.pipeline.work import Work

__all__ = ["Inputs", "Job", "label_folder", "run_phase"]


@dataclass(frozen=True)
class Inputs:
    """What a pipeline is given.

    Args:
        images: the folder of photographs to learn from.
        truth: a COCO annotation file to evaluate on; None for no evaluation.
        truth_images: the folder of its photographs; None if they are among those to learn from.
    """

    images: Path
    truth: Path | None = None
    truth_images: Path | None = None


@dataclass(frozen=True)
class Job:
    """What all stages need to know.

    Args:
        inputs: what the pipeline is given.
        folder: where it writes.
        config: the settings of all stages.
        accelerator: the process group.
        device: `auto` or `cpu`.
        workers: processes beside this one; -1 chooses, 0 uses none.
        quiet: show no progress bar where a stage can do without.
    """

    inputs: Inputs
    folder: PipelineFolder
    config: PipelineConfig
    accelerator: Accelerator
    device: str = "auto"
    workers: int = -1
    quiet: bool = False

    @property
    def processes(self) -> int:
        """`workers` as phase 1 and the evaluation count them: 0 for one a core, 1 for this process alone."""
        return 0 if self.workers < 0 else max(1, self.workers)


def run_phase(job: Job, phase: str, work: Work) -> bool:
    """Run a phase, or what is left of it; all processes together.

    Args:
        job: of the pipeline.
        phase: `explore`, `instruct` or `correct`.
        work: told of what was done.

    Returns:
        Whether it is done in all processes; false after Ctrl-C or SIGTERM, and the same call continues.

    Raises:
        SohesError: if it cannot start or go on.
    """
    if phase == "explore":
        return completed(lambda: label_folder(job, job.inputs.images, job.folder.labels, work), job.accelerator)
    sources, config = Sources(job.folder.labels), job.config.instruct
    if phase == "correct":
        sources, config = corrected_run(
            replace(sources, init=job.folder.run("instruct")), None, (), job.config.corrections
        )

    def train() -> bool:
        return train_run(
            sources, job.folder.run(phase), config, device=job.device, workers=job.workers, at_end=work.take_run
        )

    return completed(train, job.accelerator)


def label_folder(job: Job, images: Path, out: Path, work: Work, image_list: Path | None = None) -> bool:
    """Label photographs as phase 1 does.

    Args:
        job: of the pipeline.
        images: the image folder.
        out: the label folder.
        work: told of what was done.
        image_list: a file that names the images to label; None for all of the folder.

    Returns:
        Whether all were done; false after Ctrl-C or SIGTERM.

    Raises:
        SohesError: see `explore_folder`.
    """
    with _threads_kept():
        return explore_folder(
            images,
            out,
            job.config.explore,
            workers=job.processes,
            device=job.device,
            as_json=True,
            image_list=image_list,
            at_end=work.take_labels,
        )


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give libraries their threads back: phase 1 leaves them one each in the process that labels, and training follows there."""
    of_torch, of_cv2 = torch.get_num_threads(), cv2.getNumThreads()
    try:
        with threadpool_limits():
            yield
    finally:
        torch.set_num_threads(of_torch)
        cv2.setNumThreads(of_cv2)
