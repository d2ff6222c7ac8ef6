"""Optimizer steps of a run: take them; validate, log, draw and checkpoint on schedule.

checkpoints/         step-NNNNNNNN.safetensors, the whole state of a run, the newest few
model.safetensors    the model after the newest checkpoint, for `sohes segment`; in phase 3 also student.safetensors
best.safetensors     the model of the checkpoint with the lowest validation loss against the labels of phase 1; without
                     held-out photographs, with the lowest mean training loss in phase 2, and none in phase 3, where
                     losses of different steps are not comparable
pictures/            predictions on a few fixed photographs, or the teacher's labels of them, beside their labels
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from accelerate.utils import gather_object

from sohes_cli.data.batch import collate
from sohes_cli.errors import SohesError
from sohes_cli.model.config import STRIDE
from sohes_cli.model.files import BEST_NAME, save_model
from sohes_cli.runs.files import write_atomically
from sohes_cli.runs.interruption import StopRequest
from sohes_cli.training.checkpoints import checkpoint_path, prune_checkpoints
from sohes_cli.training.distribution import any_process, by_main
from sohes_cli.training.metrics import MetricsLog
from sohes_cli.training.report import peak_memory_gib, shown_numbers, training_bar
from sohes_cli.view.jpeg import jpeg_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from accelerate import Accelerator

    from sohes_cli.data.batch import Batch, Example
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.runs.progress import ProgressBar
    from sohes_cli.training.phases import Trainee
    from sohes_cli.training.report import TrainingOutcome
    from sohes_cli.training.run_folder import RunFolder

__all__ = ["LoggedBatch", "StepLoop", "TrainLoop", "is_due", "run_loop", "take_steps"]

_VALIDATION_LOSS = "loss_validation"
B = TypeVar("B")


class LoggedBatch(Protocol):
    """A batch with the messages of photographs that could not be read."""

    @property
    def errors(self) -> Sequence[str]: ...


L = TypeVar("L", bound=LoggedBatch)


class StepLoop(ABC, Generic[L]):
    """Steps of a run, each counted, shown, logged and saved on schedule.

    Args:
        accelerator: process group and device.
        every: steps from one log to the next, and from one checkpoint to the next.
        run: the folder of the run.
        outcome: kept up to date.
        bar: shows steps and failures.
        log: written in the main process; None in the others.
    """

    logs_memory_of_cpu: ClassVar[bool] = True

    def __init__(
        self,
        accelerator: Accelerator,
        every: tuple[int, int],
        run: RunFolder,
        outcome: TrainingOutcome,
        bar: ProgressBar,
        log: MetricsLog | None,
    ) -> None:
        self.accelerator, self._every = accelerator, every
        self.run, self.outcome, self.bar, self.log = run, outcome, bar, log
        self._start = time.perf_counter()

    def take(self, batch: L) -> None:
        """Take a step with a batch; log and save where that is due."""
        outcome, step = self.outcome, self.outcome.done + 1
        logged, saved = (is_due(step, outcome.steps, every) for every in self._every)
        self.bar.fail(*outcome.add_failures(batch.errors))
        outcome.numbers = self._step(batch, outcome.done, diagnosed=logged or saved)
        outcome.done = step
        outcome.numbers |= outcome.timed(time.perf_counter() - self._start)
        device = self.accelerator.device
        if self.logs_memory_of_cpu or device.type == "cuda":
            outcome.numbers["memory_gib"] = peak_memory_gib(device)
        self.bar.advance(outcome.batch_size, **shown_numbers(outcome.numbers))
        self._before_log(saved)
        if logged and self.log is not None:
            self.log.write(step, outcome.numbers)
        self._after_log(logged or saved)
        if saved:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, all processes together, unless the last step has one."""
        outcome = self.outcome
        if outcome.saved != outcome.done:
            outcome.add_failures(gather_object(list(outcome.failed)))
            by_main(self.accelerator, self._write)
            outcome.saved = outcome.done

    @abstractmethod
    def _step(self, batch: L, step: int, diagnosed: bool) -> dict[str, float]:
        """Take optimizer step `step`, counted from 0; return losses and, if `diagnosed`, diagnostics."""

    @abstractmethod
    def _write(self) -> None:
        """Write results and checkpoint; the main process alone."""

    def _before_log(self, saved: bool) -> None:
        """Add to the numbers of a step after which a checkpoint is due or not."""

    def _after_log(self, diagnosed: bool) -> None:
        """Judge the numbers of a step with or without diagnostics."""


class TrainLoop(StepLoop["Batch"]):
    """Steps of phase 2 or 3; see `StepLoop`.

    Args:
        validation: held-out photographs, which are measured.
        shown: photographs of the pictures.
        best: lowest loss of a checkpoint so far.
    """

    def __init__(
        self,
        learner: Trainee,
        run: RunFolder,
        outcome: TrainingOutcome,
        bar: ProgressBar,
        log: MetricsLog | None,
        validation: ValidationExamples,
        shown: ValidationExamples,
        best: float = math.inf,
    ) -> None:
        every = learner.config.run.log_every, learner.config.run.checkpoint_every
        super().__init__(learner.accelerator, every, run, outcome, bar, log)
        self._learner, self._validation, self._shown, self._best = learner, validation, shown, best
        self._losses: list[float] = []  # since the last checkpoint

    def _step(self, batch: Batch, step: int, diagnosed: bool) -> dict[str, float]:
        numbers = self._learner.step(batch, step, diagnosed=diagnosed)
        self._losses.append(numbers["loss"])
        return numbers

    def _before_log(self, saved: bool) -> None:
        if self.log is not None:  # in one process
            for note in self._learner.notes(self.outcome.numbers):
                self.bar.note(note)
        if saved:
            self.outcome.numbers |= self._validate()

    def _after_log(self, diagnosed: bool) -> None:  # noqa: ARG002
        step = self.outcome.done
        if self.log is not None and is_due(step, self.outcome.steps, self._learner.config.run.picture_every):
            picture = self._learner.draw(self._shown)
            if picture is not None:
                write_atomically(self.run.path / "pictures" / f"step-{step:08d}.jpg", [jpeg_bytes(picture)])
                self.log.picture(step, "predictions", picture)

    def save(self) -> None:
        """Write a checkpoint, all processes together, unless the last step has one."""
        super().save()
        self._losses = []

    def _write(self) -> None:
        """Write best model, models and checkpoint in this order: a checkpoint is never newer than its models."""
        learner, outcome, path = self._learner, self.outcome, self.run.path
        kept = {name: self.run.description[name] for name in ("config", "versions", "labels_sha256", "photographs")}
        description = {**kept, "step": outcome.done, "image_size": learner.config.data.image_size}
        trained = fmean(self._losses) if self._losses and learner.has_steady_loss else math.inf
        loss = outcome.numbers.get(_VALIDATION_LOSS, trained)
        if loss < self._best:
            self._best = loss
            save_model(path / BEST_NAME, learner.network, {**description, "loss": loss})
        for name, model in learner.models.items():
            save_model(path / name, model, description)
        description["best"] = self._best if math.isfinite(self._best) else None
        checkpoint = checkpoint_path(self.run.checkpoints, outcome.done)
        learner.save(checkpoint, outcome.done, description, outcome.failed)
        prune_checkpoints(self.run.checkpoints, learner.config.run.keep)

    def _validate(self) -> dict[str, float]:
        """Compute mean losses over the held-out photographs, which the processes share; empty without any."""
        accelerator = self.accelerator
        share = max(1, self.outcome.batch_size // accelerator.num_processes)
        mine = range(accelerator.process_index, len(self._validation), accelerator.num_processes)
        measured: list[tuple[int, dict[str, float]]] = []
        for start in range(0, len(mine), share):
            examples = self._readable(mine[start : start + share])
            if examples:
                measured.append((len(examples), self._learner.measure(collate(examples, STRIDE))))
        every: list[tuple[int, dict[str, float]]] = gather_object(measured)
        means = {}
        for name in dict.fromkeys(name for _, numbers in every for name in numbers):
            known = [(n, numbers[name]) for n, numbers in every if math.isfinite(numbers[name])]
            if known:
                means[f"{name}_validation"] = sum(n * value for n, value in known) / sum(n for n, _ in known)
        return means

    def _readable(self, indices: range) -> list[Example]:
        examples = []
        for i in indices:
            try:
                examples.append(self._validation[i])
            except SohesError as error:
                self.bar.fail(*self.outcome.add_failures([str(error)]))
        return examples


def is_due(step: int, steps: int, every: int) -> bool:
    """Return True after every so many steps, and after the last of `steps`."""
    return step == steps or step % every == 0


def run_loop(
    accelerator: Accelerator,
    run: RunFolder,
    outcome: TrainingOutcome,
    make_loop: Callable[[ProgressBar, MetricsLog | None], StepLoop[L]],
    batches: AbstractContextManager[Iterator[L]],
    failed: Iterable[str] = (),
) -> None:
    """Take the steps of a run that are left, with a bar, on which photographs `failed` before come first, and logs."""
    main = accelerator.is_main_process
    with training_bar(outcome, main) as bar:
        bar.fail(*outcome.add_failures(failed))
        if not outcome.finished:
            with MetricsLog(run.path, outcome.done) if main else nullcontext() as log:
                loop = make_loop(bar, log)
                take_steps(batches, loop.take, loop.save, accelerator)


def take_steps(
    batches: AbstractContextManager[Iterator[B]],
    take: Callable[[B], object],
    save: Callable[[], object],
    accelerator: Accelerator,
) -> None:
    """Take a step with each batch; save and stop after a signal to any process, stop at once after a second one.

    All processes call `save` together; the batches are opened here.
    """
    with StopRequest("Stopping after this step; Ctrl-C again stops at once.") as stop:
        try:
            with batches as opened:
                for batch in opened:
                    take(batch)
                    if any_process(accelerator, stop.is_set()):
                        save()
                        return
        except KeyboardInterrupt:  # the second Ctrl-C: steps since the newest checkpoint are lost
            return
