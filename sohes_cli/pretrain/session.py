"""One run of `sohes pretrain`: open the photographs and the run's folder, take the steps that are left, sum up."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.pretrain.data import batches
from sohes_cli.pretrain.diagnostics import MIN_FEATURE_RANK
from sohes_cli.pretrain.run_folder import pretrain_run, save_run
from sohes_cli.pretrain.sources import open_source
from sohes_cli.pretrain.training import Pretraining
from sohes_cli.pretrain.views import ViewSample
from sohes_cli.runs.devices import check_device
from sohes_cli.runs.shards import shard_of_environment
from sohes_cli.training.distribution import by_main, default_workers, require_divisible, require_same_step
from sohes_cli.training.loop import StepLoop, run_loop
from sohes_cli.training.report import TrainingOutcome, announce_training, conclude_training
from sohes_cli.vit.pretrained import BACKBONE_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.runs.progress import ProgressBar
    from sohes_cli.training.metrics import MetricsLog
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
    """Train a backbone on the photographs of a folder or of tar shards, or continue a run.

    Args:
        images: see `open_source`.
        out: the folder of the run.
        device, workers, overwrite, as_json: see `sohes_cli.training.session.train_run`.

    Returns:
        True if all steps are done; False after Ctrl-C or SIGTERM, where the same call continues.

    Raises:
        SohesError: if the run cannot start, diverges or collapses.
        PartialFailure: if a photograph could not be read, after the last step.
    """
    check_device(device)
    shard = shard_of_environment()
    source = open_source(images)
    training = Pretraining(config, config.steps_of(len(source)), device)
    accelerator = training.accelerator
    _require_fit(training)
    run = pretrain_run(out, source, config, training.precision)
    by_main(accelerator, lambda: run.begin(overwrite))
    photographs = len(source) + len(source.unreadable)
    outcome = TrainingOutcome(out, photographs, training.steps, config.optimizer.batch_size)
    newest = run.latest()
    if newest is not None:
        outcome.resume(*training.load(newest))
    require_same_step(outcome.done, out)
    main = accelerator.is_main_process
    if main:
        announce_training(_described(training), accelerator, training.precision, outcome)
    left = batches(
        source,
        config,
        training.patch_size,
        outcome.done,
        outcome.steps,
        workers=default_workers(accelerator, shard) if workers < 0 else workers,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    failed = [f"{name}: {reason}." for name, reason in source.unreadable] if main else ()
    run_loop(accelerator, run, outcome, lambda bar, log: _PretrainLoop(training, run, outcome, bar, log), left, failed)
    if not main:
        return outcome.finished
    next_command = f"sohes explore IMAGES --backbone {shlex.quote(str(out))}"
    ending = f"The backbone is {out / BACKBONE_NAME}.", f"Next: {next_command}"
    return conclude_training(outcome, "backbone", _SHOWN, ending, as_json=as_json)


def _described(training: Pretraining) -> str:
    parameters = sum(p.numel() for p in training.teacher.vit.parameters())
    return f"{training.config.model.name}, {parameters / 1e6:.1f} million parameters, patch {training.patch_size}"


def _require_fit(training: Pretraining) -> None:
    """Refuse view sizes that patches do not divide, and a batch that the processes cannot share."""
    config = training.config
    require_divisible(config.optimizer.batch_size, training.accelerator)
    for name in ("global_size", "local_size"):
        size = getattr(config.views, name)
        if size % training.patch_size:
            message = f"views.{name} must be a multiple of the patch size {training.patch_size}, not {size}."
            raise UsageError(message, f"Change --set views.{name}=...")


class _PretrainLoop(StepLoop[ViewSample]):
    """Steps of a run, with features watched for collapse; see `StepLoop`.

    Features are measured at each step of a checkpoint, so that collapsed ones never replace good ones.
    """

    logs_memory_of_cpu = False

    def __init__(
        self, training: Pretraining, run: RunFolder, outcome: TrainingOutcome, bar: ProgressBar, log: MetricsLog | None
    ) -> None:
        every = training.config.run.log_every, training.config.run.checkpoint_every
        super().__init__(training.accelerator, every, run, outcome, bar, log)
        self._training = training
        self._collapsed = 0  # measurements in a row

    def _step(self, batch: ViewSample, step: int, diagnosed: bool) -> dict[str, float]:
        return self._training.step(batch, step, diagnosed=diagnosed)

    def save(self) -> None:
        """Write a checkpoint, all processes together, unless the features were collapsed when last measured."""
        if not self._collapsed:
            super().save()

    def _write(self) -> None:
        save_run(self.run, self._training, self.outcome.done, self.outcome.failed)

    def _after_log(self, diagnosed: bool) -> None:
        """Count measurements of collapsed features; SohesError after some in a row, or one at the last step."""
        if not diagnosed:
            return
        outcome = self.outcome
        rank, agreement = outcome.numbers["feature_rank"], outcome.numbers["match_agreement"]
        self._collapsed = 0 if rank >= MIN_FEATURE_RANK else self._collapsed + 1
        if self._collapsed < (1 if outcome.finished else _COLLAPSED_MEASUREMENTS):
            return
        kept = f"the checkpoint of step {outcome.saved} is kept" if outcome.saved else "there is no earlier checkpoint"
        raise SohesError(
            f"The features have collapsed at step {outcome.done}: their effective rank is {rank:.1f}, and "
            f"{agreement:.0%} of the patches match their counterpart in another view; {kept}.",
            "Lower --learning-rate, or raise optimizer.teacher_momentum or --batch-size, and begin anew.",
        )
