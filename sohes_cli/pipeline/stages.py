"""The three phases as stages of a pipeline, and the work of a stage in one call, on which its processes agree.

Each phase calls the session of its own command, which continues the work before.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import cv2
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from threadpoolctl import threadpool_limits

from sohes_cli.errors import PartialFailure, UsageError, one_line
from sohes_cli.explore.session import explore_folder
from sohes_cli.runs.shards import shard_of_environment
from sohes_cli.training.distribution import any_process, make_accelerator
from sohes_cli.training.session import corrected_run, train_run
from sohes_cli.training.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from accelerate import Accelerator

    from sohes_cli.pipeline.config import PipelineConfig
    from sohes_cli.pipeline.folder import PipelineFolder
    from sohes_cli.runs.labeling import LabelingOutcome
    from sohes_cli.training.report import TrainingOutcome

__all__ = ["PipelineInputs", "PipelineJob", "StageWork", "completed", "join_processes", "label_folder", "run_phase"]

_TIMEOUT = timedelta(days=7)  # the first process to end a stage waits for the last one


@dataclass(frozen=True)
class PipelineInputs:
    """Photographs and ground truth of a pipeline.

    Args:
        images: the folder of photographs to learn from.
        truth: COCO annotation file to evaluate on; None for no evaluation.
        truth_images: the folder of its photographs; None if they are among those to learn from.
    """

    images: Path
    truth: Path | None = None
    truth_images: Path | None = None


@dataclass(frozen=True)
class PipelineJob:
    """Inputs, folder, settings and processes of a pipeline.

    Args:
        device: `auto` or `cpu`.
        workers: processes beside this one; -1 chooses, 0 uses none.
        quiet: show no progress bar in the evaluation.
    """

    inputs: PipelineInputs
    folder: PipelineFolder
    config: PipelineConfig
    accelerator: Accelerator
    device: str = "auto"
    workers: int = -1
    quiet: bool = False

    @property
    def processes(self) -> int:
        """`workers` as counted by phase 1 and the evaluation: 0 for one a core, 1 for this process alone."""
        return 0 if self.workers < 0 else max(1, self.workers)


@dataclass
class StageWork:
    """Work of one call: of this process or, once gathered, of all.

    Args:
        worked: True if anything was left to do.
        failed: messages of photographs and labels that failed.
        photographs: of a training run, unreadable ones included.
        steps: of a training run.
    """

    worked: bool = False
    failed: list[str] = field(default_factory=list)
    photographs: int = 0
    steps: int = 0

    def add_labeling(self, outcome: LabelingOutcome) -> None:
        """Add the outcome of `explore_folder` or `segment_images`."""
        self.worked |= outcome.images > 0
        self.failed += [one_line(error) for _, error in sorted(outcome.failed)]

    def add_training(self, outcome: TrainingOutcome) -> None:
        """Add the outcome of `train_run`."""
        self.worked |= outcome.done > outcome.done_before
        self.failed += [one_line(error) for error in outcome.failed]
        self.photographs, self.steps = outcome.photographs, outcome.steps

    def gather(self) -> None:
        """Add the work of the other processes; called by all of them together."""
        every: list[tuple[bool, list[str]]] = gather_object([(self.worked, self.failed)])
        self.worked = any(worked for worked, _ in every)
        self.failed = list(dict.fromkeys(message for _, failed in every for message in failed))


def run_phase(job: PipelineJob, phase: str, work: StageWork) -> bool:
    """Do the work of `explore`, `instruct` or `correct` that is left, and add it to `work`; all processes together.

    Returns:
        True if all processes are done; False after Ctrl-C or SIGTERM, where the same call continues.

    Raises:
        SohesError: if it cannot start or go on.
    """
    if phase == "explore":
        return completed(lambda: label_folder(job, job.inputs.images, job.folder.labels, work), job.accelerator)
    sources, config = Sources(job.folder.labels), job.config.instruct
    if phase == "correct":
        sources = replace(sources, init=job.folder.run("instruct"))
        sources, config = corrected_run(sources, None, (), job.config.corrections)
    train = partial(train_run, sources, job.folder.run(phase), config, device=job.device, workers=job.workers)
    return completed(lambda: train(at_end=work.add_training), job.accelerator)


def label_folder(job: PipelineJob, images: Path, out: Path, work: StageWork, image_list: Path | None = None) -> bool:
    """Label photographs with phase 1; see `explore_folder` for the arguments, the result and the errors."""
    with _threads_restored():
        return explore_folder(
            images,
            out,
            job.config.explore,
            workers=job.processes,
            device=job.device,
            as_json=True,
            image_list=image_list,
            at_end=work.add_labeling,
        )


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Restore the threads of libraries, which phase 1 limits to one each, for the training that follows."""
    of_torch, of_cv2 = torch.get_num_threads(), cv2.getNumThreads()
    try:
        with threadpool_limits():
            yield
    finally:
        torch.set_num_threads(of_torch)
        cv2.setNumThreads(of_cv2)


def completed(run: Callable[[], bool], accelerator: Accelerator) -> bool:
    """Run a session in all processes together; return True if all finish it, even if single photographs fail.

    Raises:
        SohesError: if the run fails as a whole.
    """
    try:
        done = run()
    except PartialFailure:
        done = True
    return not any_process(accelerator, not done)


def join_processes(device: str) -> Accelerator:
    """Join the process group, in which a fast process waits for a slow one as long as a stage may take.

    Args:
        device: `cpu`, or `auto` for the choice of Accelerate.

    Raises:
        UsageError: if the processes cannot find each other.
    """
    try:
        PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_TIMEOUT)
    except ValueError as error:
        message = f"The processes cannot be set up: {error}"
        raise UsageError(message, "Start with accelerate launch or torchrun.") from error
    accelerator = make_accelerator(device)
    count = shard_of_environment().count
    if count != accelerator.num_processes:
        message = f"The environment is that of {count} processes, but Accelerate sees {accelerator.num_processes}."
        raise UsageError(message, "Start with accelerate launch or torchrun.")
    return accelerator
