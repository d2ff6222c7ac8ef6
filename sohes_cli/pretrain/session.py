"""One run of `sohes pretrain`: open the photographs and the run's folder, take the steps that are left, log and save, sum up."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list, gather_object

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.explore.interruption import StopRequest
from sohes_cli.explore.shards import Shard, shard_of_environment
from sohes_cli.pretrain.data import batches
from sohes_cli.pretrain.diagnostics import MIN_FEATURE_RANK
from sohes_cli.pretrain.report import Outcome, Progress, announce, conclude, print_outcome
from sohes_cli.pretrain.run_folder import RunFolder, describe_run
from sohes_cli.pretrain.sources import ImageSource, open_source
from sohes_cli.pretrain.training import Pretraining
from sohes_cli.processes import available_cores
from sohes_cli.training.metrics import MetricsLog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.views import Sample

__all__ = ["pretrain_folder"]

_MAX_WORKERS = 8
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
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device must be auto or cpu, not {device!r}.", "Choose GPUs with CUDA_VISIBLE_DEVICES or accelerate launch.")
    shard = shard_of_environment()
    source = open_source(images)
    training = Pretraining(config, config.steps_of(len(source)), device)
    _require_fit(training)
    run = RunFolder(out, describe_run(source, config, training.precision))
    _by_main(training, lambda: run.begin(overwrite))
    outcome = Outcome(out, len(source) + len(source.unreadable), training.steps, config.optimizer.batch_size)
    _resume(training, run, outcome)
    main = training.accelerator.is_main_process
    if main:
        announce(training, outcome)
    with Progress(outcome, main) as progress:
        progress.fail([f"{name}: {reason}." for name, reason in source.unreadable] if main else ())
        if not outcome.finished:
            _train(training, source, run, outcome, progress, _workers(training, shard) if workers < 0 else workers)
    if not main:
        return outcome.finished
    print_outcome(outcome, as_json)
    return conclude(outcome)


def _require_fit(training: Pretraining) -> None:
    """Refuse sizes that the patches or the processes do not divide."""
    config, processes = training.config, training.accelerator.num_processes
    if config.optimizer.batch_size % processes:
        raise UsageError(f"--batch-size {config.optimizer.batch_size} cannot be shared by {processes} processes.", "Give a multiple.")
    for name in ("global_size", "local_size"):
        size = getattr(config.views, name)
        if size % training.patch_size:
            raise UsageError(
                f"views.{name} must be a multiple of the patch size {training.patch_size}, not {size}.", f"Change --set views.{name}=..."
            )


def _resume(training: Pretraining, run: RunFolder, outcome: Outcome) -> None:
    """Go on from the newest checkpoint, if there is one."""
    newest = run.latest()
    if newest is not None:
        outcome.done, failed = training.load(newest)
        outcome.add_failures(failed)
    outcome.done_before = outcome.saved = outcome.done
    if len(set(gather_object([outcome.done]))) > 1:
        raise SohesError(f"The processes do not see the same checkpoints in --out {run.path}.", "Choose a folder that all machines share.")


def _train(training: Pretraining, source: ImageSource, run: RunFolder, outcome: Outcome, progress: Progress, workers: int) -> None:
    """Take the steps that are left, or those until a signal says to stop."""
    accelerator = training.accelerator
    process, processes = accelerator.process_index, accelerator.num_processes
    place = {"workers": workers, "process": process, "processes": processes}
    written = MetricsLog(run.path, outcome.done) if accelerator.is_main_process else nullcontext()
    with written as log, StopRequest("Stopping after this step; Ctrl-C again stops at once.") as stop:
        loop = _Loop(training, run, outcome, progress, log)
        try:
            with batches(source, training.config, training.patch_size, outcome.done, outcome.steps, **place) as samples:
                for sample in samples:
                    loop.take(sample)
                    if _any_process(training, stop.is_set()):
                        loop.save()
                        return
        except KeyboardInterrupt:  # the second Ctrl-C: steps since the newest checkpoint are lost
            return


class _Loop:
    """Steps of a run, each with what is due after it.

    Args:
        training: what is trained.
        run: where it is saved.
        outcome: kept up to date.
        progress: told of each step and failure.
        log: where numbers go; None in a process that writes nothing.
    """

    def __init__(self, training: Pretraining, run: RunFolder, outcome: Outcome, progress: Progress, log: MetricsLog | None) -> None:
        self._training, self._run, self._outcome, self._progress, self._log = training, run, outcome, progress, log
        self._collapsed = 0  # measurements in a row
        self._start = time.perf_counter()

    def take(self, sample: Sample) -> None:
        """Take a step; measure, log and save where that is due.

        Features are measured at the very step of a checkpoint, so that none of collapsed ones takes the place of a good one.
        """
        outcome, config = self._outcome, self._training.config.run
        step = outcome.done + 1
        logged, saved = (step == outcome.steps or step % every == 0 for every in (config.log_every, config.checkpoint_every))
        self._progress.fail(sample.errors)
        outcome.numbers = self._training.step(sample, outcome.done, diagnosed=logged or saved)
        outcome.done = step
        outcome.numbers |= self._machine_numbers()
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
        _by_main(self._training, lambda: self._run.save(self._training, outcome.done, outcome.failed))
        outcome.saved = outcome.done

    def _examine(self) -> None:
        """Count measurements of collapsed features; raises SohesError when there is no doubt, or no step left to dispel it."""
        outcome = self._outcome
        rank, agreement = outcome.numbers["feature_rank"], outcome.numbers["match_agreement"]
        self._collapsed = 0 if rank >= MIN_FEATURE_RANK else self._collapsed + 1
        if self._collapsed < (1 if outcome.finished else _COLLAPSED_MEASUREMENTS):
            return
        kept = f"the checkpoint of step {outcome.saved} is kept" if outcome.saved else "there is no checkpoint from before"
        raise SohesError(
            f"The features have collapsed at step {outcome.done}: their effective rank is {rank:.1f}, and {agreement:.0%} of the patches "
            f"find their place in another view; {kept}.",
            "Lower --learning-rate, or raise optimizer.teacher_momentum or --batch-size, and begin anew.",
        )

    def _machine_numbers(self) -> dict[str, float]:
        outcome = self._outcome
        outcome.seconds = time.perf_counter() - self._start
        images = outcome.batch_size * (outcome.done - outcome.done_before)
        numbers = {"images_per_second": images / max(outcome.seconds, 1e-9), "seconds": outcome.seconds}
        if self._training.accelerator.device.type == "cuda":
            numbers["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return numbers


def _workers(training: Pretraining, shard: Shard) -> int:
    """Processes that read photographs for this one: on a CPU one reads faster than the others train."""
    cores = max(1, available_cores() // shard.local_count)
    return 1 if training.accelerator.device.type == "cpu" else min(_MAX_WORKERS, cores)


def _any_process(training: Pretraining, flag: bool) -> bool:
    """Whether any process was told to stop: a signal may reach one of them first."""
    flags = training.accelerator.gather(torch.tensor([flag], device=training.accelerator.device))
    return bool(torch.as_tensor(flags).any())


def _by_main(training: Pretraining, action: Callable[[], object]) -> None:
    """Let the main process act while the others wait; if it fails, they fail with it."""
    failure: list[SohesError | None] = [None]
    if training.accelerator.is_main_process:
        try:
            action()
        except SohesError as error:
            failure = [error]
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]
