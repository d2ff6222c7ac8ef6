"""The steps of a run of `sohes train`, each with what is due after it: log, validation, checkpoint, pictures.

checkpoints/         step-NNNNNNNN.safetensors, all that a run needs to go on, the newest few
model.safetensors    the model after the newest checkpoint: what `sohes segment` takes; in phase 3 also student.safetensors
best.safetensors     the model of the checkpoint with the lowest validation loss, in phase 3 too that of the initial labels; if nothing is
                     held out, with the lowest mean training loss in phase 2, and none in phase 3, whose loss changes its meaning
pictures/            predictions on the same few photographs, or the teacher's labels of them, beside their labels
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from accelerate.utils import gather_object

from sohes_cli.data.batch import collate
from sohes_cli.errors import SohesError
from sohes_cli.model.config import STRIDE
from sohes_cli.model.files import BEST_NAME, save_model
from sohes_cli.runs.files import write_atomically
from sohes_cli.runs.interruption import StopRequest
from sohes_cli.training.checkpoints import checkpoint_path, prune_checkpoints
from sohes_cli.training.distribution import any_process, by_main
from sohes_cli.training.report import Stopwatch, peak_memory_gib
from sohes_cli.view.jpeg import jpeg_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from accelerate import Accelerator
    from numpy.typing import NDArray

    from sohes_cli.data.batch import Batch, Example
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.model.segmentation_model import EntityModel
    from sohes_cli.training.config import TrainConfig
    from sohes_cli.training.metrics import MetricsLog
    from sohes_cli.training.report import Outcome, Progress
    from sohes_cli.training.run_folder import RunFolder


__all__ = ["Loop", "Trainee", "is_due", "take_steps"]

_CHECKED = "loss_validation"
B = TypeVar("B")


class Trainee(Protocol):
    """What a run trains: `sohes_cli.training.learner.Learner` in phase 2, `sohes_cli.training.correction.Correction` in phase 3."""

    @property
    def config(self) -> TrainConfig:
        """The settings of the run."""
        ...

    @property
    def accelerator(self) -> Accelerator:
        """The process group and the device."""
        ...

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        ...

    @property
    def network(self) -> EntityModel:
        """The model that the run is for."""
        ...

    @property
    def models(self) -> dict[str, EntityModel]:
        """All models to write, by the names of their files."""
        ...

    @property
    def has_steady_loss(self) -> bool:
        """Whether the losses of different steps measure the same, so that the best model can be told by them."""
        ...

    def step(self, batch: Batch, step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take an optimizer step with this process's part of a batch."""
        ...

    def measure(self, batch: Batch) -> dict[str, float]:
        """The losses of a batch, without learning from it."""
        ...

    def draw(self, shown: ValidationExamples) -> NDArray[np.uint8] | None:
        """A picture of photographs with what is found in them."""
        ...

    def notes(self, numbers: Mapping[str, float]) -> list[str]:
        """What the user should know of the numbers of a step."""
        ...

    def save(self, path: Path, step: int, description: dict[str, Any], failed: Iterable[str] = ()) -> None:
        """Write a checkpoint."""
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Read a checkpoint; its description."""
        ...


class Loop:
    """See the module.

    Args:
        learner: what is trained.
        run: where it is saved.
        outcome: kept up to date.
        progress: told of each step and failure.
        log: where numbers go; None in a process that writes nothing.
        validation: photographs that are measured, and not trained on.
        shown: photographs of the pictures.
        best: the lowest loss of a checkpoint so far.
    """

    def __init__(
        self,
        learner: Trainee,
        run: RunFolder,
        outcome: Outcome,
        progress: Progress,
        log: MetricsLog | None,
        validation: ValidationExamples,
        shown: ValidationExamples,
        best: float = math.inf,
    ) -> None:
        self._learner, self._run, self._outcome, self._progress, self._log = learner, run, outcome, progress, log
        self._validation, self._shown, self._best = validation, shown, best
        self._losses: list[float] = []  # since the last checkpoint
        self._stopwatch = Stopwatch(outcome)

    def take(self, batch: Batch) -> None:
        """Take a step; measure, log, save and draw where that is due."""
        outcome, config = self._outcome, self._learner.config.run
        step = outcome.done + 1
        logged, saved, drawn = (
            is_due(step, outcome.steps, every)
            for every in (config.log_every, config.checkpoint_every, config.picture_every)
        )
        self._progress.fail(batch.errors)
        outcome.numbers = self._learner.step(batch, outcome.done, diagnosed=logged or saved)
        self._losses.append(outcome.numbers["loss"])
        outcome.done = step
        outcome.numbers |= self._stopwatch.numbers() | {"memory_gib": peak_memory_gib(self._learner.accelerator.device)}
        self._progress.step()
        if self._log is not None:  # in one process
            for note in self._learner.notes(outcome.numbers):
                self._progress.note(note)
        if saved:
            outcome.numbers |= self._validate()
        if logged and self._log is not None:
            self._log.write(step, outcome.numbers)
        if drawn and self._log is not None:
            self._draw(step)
        if saved:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, all processes together."""
        outcome = self._outcome
        if outcome.saved == outcome.done:
            return
        outcome.add_failures(gather_object(list(outcome.failed)))
        by_main(self._learner.accelerator, self._write)
        outcome.saved, self._losses = outcome.done, []

    def _write(self) -> None:
        """Write the best model, the model and the checkpoint, in this order: where the last is, the others are."""
        learner, outcome, path = self._learner, self._outcome, self._run.path
        described = self._described()
        trained = fmean(self._losses) if self._losses and learner.has_steady_loss else math.inf
        loss = outcome.numbers.get(_CHECKED, trained)
        if loss < self._best:
            self._best = loss
            save_model(path / BEST_NAME, learner.network, {**described, "loss": loss})
        for name, model in learner.models.items():
            save_model(path / name, model, described)
        best = self._best if math.isfinite(self._best) else None
        learner.save(
            checkpoint_path(self._run.checkpoints, outcome.done),
            outcome.done,
            {**described, "best": best},
            outcome.failed,
        )
        prune_checkpoints(self._run.checkpoints, learner.config.run.keep)

    def _described(self) -> dict[str, Any]:
        """What travels with every file: settings, versions and the hash of the labels."""
        there = self._run.description
        kept = {name: there[name] for name in ("config", "versions", "labels_sha256", "photographs")}
        return {**kept, "step": self._outcome.done, "image_size": self._learner.config.data.image_size}

    def _validate(self) -> dict[str, float]:
        """Mean losses over the photographs that are held out, each process measuring its part; nothing if there are none."""
        accelerator = self._learner.accelerator
        share = max(1, self._outcome.batch_size // accelerator.num_processes)
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
                self._progress.fail([str(error)])
        return examples

    def _draw(self, step: int) -> None:
        """Write predictions as a picture, and give it to TensorBoard."""
        picture = self._learner.draw(self._shown)
        if picture is not None and self._log is not None:
            write_atomically(self._run.path / "pictures" / f"step-{step:08d}.jpg", [jpeg_bytes(picture)])
            self._log.picture(step, "predictions", picture)


def is_due(step: int, steps: int, every: int) -> bool:
    """Whether what is done every so many steps, and after the last one, is done after `step` of `steps`."""
    return step == steps or step % every == 0


def take_steps(
    batches: AbstractContextManager[Iterator[B]],
    take: Callable[[B], object],
    save: Callable[[], object],
    accelerator: Accelerator,
) -> None:
    """Take a step with each batch; after a signal to any of the processes save and stop, after a second one stop at once.

    Args:
        batches: those of the steps that are left, from `sohes_cli.training.loading.open_batches`; opened here.
        take: takes a step.
        save: writes what a later run needs to go on; called by all processes together.
        accelerator: the process group.

    Raises:
        SohesError: whatever `take`, `save` and the batches raise.
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
