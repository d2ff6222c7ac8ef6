"""One run of `sohes pretrain`: open the photographs and the run's folder, take the steps that are left, log and save, sum up."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.pretrain.data import batches
from sohes_cli.pretrain.diagnostics import MIN_FEATURE_RANK
from sohes_cli.pretrain.run_folder import pretrain_run, save_run
from sohes_cli.pretrain.sources import ImageSource, open_source
from sohes_cli.pretrain.training import Pretraining
from sohes_cli.runs.shards import shard_of_environment
from sohes_cli.training.distribution import by_main, check_device, default_workers, require_divisible, require_same_step
from sohes_cli.training.loop import is_due, take_steps
from sohes_cli.training.metrics import MetricsLog
from sohes_cli.training.report import Outcome, Progress, Stopwatch, announce, conclude, peak_memory_gib, print_outcome
from sohes_cli.vit.pretrained import BACKBONE_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.views import Sample
    from sohes_cli.training.run_folder import RunFolder

__all__ = ["pretrain_folder"]

_SHOWN = ("loss", "feature_rank", "match_agreement", "images_per_second")
_COLLAPSED_MEASUREMENTS = 3  # one batch may mislead


def pretrain_folder(
    images: Path,
    out: Path,
    config: PretrainConfig,
    *,
    device: str = "auto",
    workers: int = -1,
    overwrite: bool = False,
    as_json: bool = False,
) -> bool:
    """Train a backbone on the photographs of a folder or of tar shards, or go on with a run.

    Args:
        images: see `open_source`.
        out: the run's folder.
        config: the settings.
        device: `auto` or `cpu`.
        workers: processes that read and crop; -1 for one a core, as far as the device needs them. They import the main program
            again, so a script that calls this needs `if __name__ == "__main__"`.
        overwrite: remove an older run first.
        as_json: print the summary as JSON.

    Returns:
        Whether all steps are done; false after Ctrl-C or SIGTERM, and the same call continues.

    Raises:
        SohesError: if the run cannot start, diverges or collapses, or a photograph could not be read (after the last step).
    """
    check_device(device)
    shard = shard_of_environment()
    source = open_source(images)
    training = Pretraining(config, config.steps_of(len(source)), device)
    _require_fit(training)
    run = pretrain_run(out, source, config, training.precision)
    by_main(training.accelerator, lambda: run.begin(overwrite))
    outcome = Outcome(out, len(source) + len(source.unreadable), training.steps, config.optimizer.batch_size)
    _resume(training, run, outcome)
    main = training.accelerator.is_main_process
    if main:
        announce(_described(training), training.accelerator, training.precision, outcome)
    with Progress(outcome, main) as progress:
        progress.fail([f"{name}: {reason}." for name, reason in source.unreadable] if main else ())
        if not outcome.finished:
            _train(
                training,
                source,
                run,
                outcome,
                progress,
                default_workers(training.accelerator, shard) if workers < 0 else workers,
            )
    if not main:
        return outcome.finished
    ending = (
        f"The backbone is {out / BACKBONE_NAME}.",
        f"Next: sohes explore IMAGES --backbone {shlex.quote(str(out))}",
    )
    print_outcome(outcome, as_json, _SHOWN, ending)
    return conclude(outcome, "backbone")


def _described(training: Pretraining) -> str:
    parameters = sum(p.numel() for p in training.teacher.vit.parameters())
    return f"{training.config.model.name}, {parameters / 1e6:.1f} million parameters, patch {training.patch_size}"


def _require_fit(training: Pretraining) -> None:
    """Refuse sizes that the patches or the processes do not divide."""
    config = training.config
    require_divisible(config.optimizer.batch_size, training.accelerator)
    for name in ("global_size", "local_size"):
        size = getattr(config.views, name)
        if size % training.patch_size:
            raise UsageError(
                f"views.{name} must be a multiple of the patch size {training.patch_size}, not {size}.",
                f"Change --set views.{name}=...",
            )


def _resume(training: Pretraining, run: RunFolder, outcome: Outcome) -> None:
    """Go on from the newest checkpoint, if there is one."""
    newest = run.latest()
    if newest is not None:
        outcome.resume(*training.load(newest))
    require_same_step(outcome.done, run.path)


def _train(
    training: Pretraining, source: ImageSource, run: RunFolder, outcome: Outcome, progress: Progress, workers: int
) -> None:
    """Take the steps that are left, or those until a signal says to stop."""
    accelerator = training.accelerator
    process, processes = accelerator.process_index, accelerator.num_processes
    place = {"workers": workers, "process": process, "processes": processes}
    left = batches(source, training.config, training.patch_size, outcome.done, outcome.steps, **place)
    with MetricsLog(run.path, outcome.done) if accelerator.is_main_process else nullcontext() as log:
        loop = _Loop(training, run, outcome, progress, log)
        take_steps(left, loop.take, loop.save, accelerator)


class _Loop:
    """Steps of a run, each with what is due after it.

    Args:
        training: what is trained.
        run: where it is saved.
        outcome: kept up to date.
        progress: told of each step and failure.
        log: where numbers go; None in a process that writes nothing.
    """

    def __init__(
        self, training: Pretraining, run: RunFolder, outcome: Outcome, progress: Progress, log: MetricsLog | None
    ) -> None:
        self._training, self._run, self._outcome, self._progress, self._log = training, run, outcome, progress, log
        self._stopwatch = Stopwatch(outcome)
        self._collapsed = 0  # measurements in a row

    def take(self, sample: Sample) -> None:
        """Take a step; measure, log and save where that is due.

        Features are measured at the very step of a checkpoint, so that none of collapsed ones takes the place of a good one.
        """
        outcome, config = self._outcome, self._training.config.run
        step = outcome.done + 1
        logged, saved = (is_due(step, outcome.steps, every) for every in (config.log_every, config.checkpoint_every))
        self._progress.fail(sample.errors)
        outcome.numbers = self._training.step(sample, outcome.done, diagnosed=logged or saved)
        outcome.done = step
        outcome.numbers |= self._stopwatch.numbers()
        if self._training.accelerator.device.type == "cuda":
            outcome.numbers["memory_gib"] = peak_memory_gib(self._training.accelerator.device)
        self._progress.step()
        if logged and self._log is not None:
            self._log.write(step, outcome.numbers)
        if logged or saved:
            self._examine()
        if saved:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, all processes together; not of features that were collapsed when they were last measured."""
        outcome = self._outcome
        if self._collapsed or outcome.saved == outcome.done:
            return
        outcome.add_failures(gather_object(list(outcome.failed)))
        by_main(self._training.accelerator, lambda: save_run(self._run, self._training, outcome.done, outcome.failed))
        outcome.saved = outcome.done

    def _examine(self) -> None:
        """Count measurements of collapsed features; raises SohesError when there is no doubt, or no step left to dispel it."""
        outcome = self._outcome
        rank, agreement = outcome.numbers["feature_rank"], outcome.numbers["match_agreement"]
        self._collapsed = 0 if rank >= MIN_FEATURE_RANK else self._collapsed + 1
        if self._collapsed < (1 if outcome.finished else _COLLAPSED_MEASUREMENTS):
            return
        kept = (
            f"the checkpoint of step {outcome.saved} is kept" if outcome.saved else "there is no checkpoint from before"
        )
        raise SohesError(
            f"The features have collapsed at step {outcome.done}: their effective rank is {rank:.1f}, and {agreement:.0%} of the patches "
            f"find their place in another view; {kept}.",
            "Lower --learning-rate, or raise optimizer.teacher_momentum or --batch-size, and begin anew.",
        )
