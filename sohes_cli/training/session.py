"""One run of `sohes train`: open labels and photographs and the run's folder, take the steps that are left, log and save, sum up."""

from __future__ import annotations

import os
import shlex
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes_cli.data.batch import collate
from sohes_cli.data.examples import TrainingExamples, ValidationExamples, split_photographs
from sohes_cli.data.sources import LabeledPhotographs, open_labeled
from sohes_cli.errors import UsageError
from sohes_cli.model.config import STRIDE
from sohes_cli.model.location import MODEL_NAME, default_checkpoint, find_model
from sohes_cli.runs.files import file_sha256
from sohes_cli.runs.shards import shard_of_environment
from sohes_cli.settings import resolve, to_plain
from sohes_cli.training.correct_config import CorrectConfig, correct_config
from sohes_cli.training.distribution import by_main, check_device, default_workers, require_divisible, require_same_step
from sohes_cli.training.initial import settings_of
from sohes_cli.training.loading import open_batches
from sohes_cli.training.loop import Loop, take_steps
from sohes_cli.training.metrics import MetricsLog
from sohes_cli.training.phases import CORRECT, INSTRUCT, Phase, make_trainee, phase_of
from sohes_cli.training.report import Outcome, Progress, announce, conclude, print_outcome
from sohes_cli.training.run_folder import RunFolder, is_run_of, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sohes_cli.training.config import TrainConfig
    from sohes_cli.training.loop import Trainee


__all__ = ["Sources", "corrected_run", "resumed_run", "train_run"]

_PICTURED = 4
_DEFAULT_LABELS = Path("labels")
_DEFAULT_START = Path("runs/instruct")


@dataclass(frozen=True)
class Sources:
    """What a run learns from.

    Args:
        labels: a label folder of `sohes explore` or a COCO annotation file; None for `./labels`.
        images: the folder of the photographs; None for the one that the label folder names.
        init: a model to start from; None for what `model.weights` names.
    """

    labels: Path | None = None
    images: Path | None = None
    init: Path | None = None

    def open(self) -> LabeledPhotographs:
        """The photographs with their labels.

        Raises:
            SohesError: if there are none, or labels and photographs do not belong together.
        """
        labels = self.labels or _DEFAULT_LABELS
        if not labels.exists():
            given = "" if self.labels else " (the default of --labels)"
            raise UsageError(
                f"There are no labels {labels}{given}.", "Make them with `sohes explore IMAGES --out labels`."
            )
        return open_labeled(labels, self.images)


def resumed_run(
    out: Path, sources: Sources, assignments: Sequence[str], flags: Mapping[str, Any], phase: Phase = INSTRUCT
) -> tuple[Sources, TrainConfig]:
    """The sources and settings of a run that is to go on, with those put over them that were given anew.

    Raises:
        UsageError: if there is no run in `out`.
    """
    there = read_run(out, phase.kind)
    if there is None:
        raise UsageError(
            f"--resume: there is no run in {out}.", "Name its folder with --out, or start one without --resume."
        )
    config = resolve(phase.config, {"run": there["config"]}, "run", None, assignments, flags)
    found = _sources_of(out, there)
    return Sources(sources.labels or found.labels, sources.images or found.images, sources.init or found.init), config


def corrected_run(
    sources: Sources, file: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]
) -> tuple[Sources, CorrectConfig]:
    """The sources and settings of a run of phase 3: those of the run that it goes on from, with those put over them that are given.

    Args:
        sources: what is given; the model to start from is otherwise that of `./runs/instruct`, and its labels are those of its run.
        file: see `sohes_cli.settings.resolve`.
        assignments: likewise.
        flags: likewise.

    Raises:
        UsageError: if there is no model to start from.
        WeightsError: if it is not one of ours, or damaged.
        ConfigError: if a setting is wrong.
    """
    init = sources.init or _DEFAULT_START
    if not init.exists():
        given = "" if sources.init else " (the default of --init)"
        raise UsageError(
            f"There is no model {init}{given} to correct.", "Train one with `sohes train --phase instruct`."
        )
    config = correct_config(settings_of(init), file, assignments, flags)
    if sources.labels is None:
        folder = init if init.is_dir() else init.parent
        there = read_run(folder, CORRECT.kind if is_run_of(folder, CORRECT.kind) else INSTRUCT.kind)
        found = Sources() if there is None else _sources_of(folder, there)
        if found.labels is not None and not found.labels.exists():
            raise UsageError(
                f"The labels {found.labels}, from which {init} learned, are not there.", "Name labels with --labels."
            )
        sources = replace(found, images=sources.images or found.images)
    return replace(sources, init=init), config


def _sources_of(out: Path, there: Mapping[str, Any]) -> Sources:
    """What the run in `out` learns from; its paths are relative to the folder."""
    labels, images = (Path(os.path.normpath(out / there[name])) for name in ("label_path", "image_path"))
    return Sources(labels, images, Path(os.path.normpath(out / there["start"])) if there["start"] else None)


def train_run(
    sources: Sources,
    out: Path,
    config: TrainConfig,
    *,
    device: str = "auto",
    workers: int = -1,
    overwrite: bool = False,
    as_json: bool = False,
    at_end: Callable[[Outcome], object] | None = None,
) -> bool:
    """Train a model on labeled photographs, or go on with a run.

    Args:
        sources: labels, photographs and start.
        out: the run's folder.
        config: the settings.
        device: `auto` or `cpu`.
        workers: processes that read and crop; -1 for one a core, as far as the device needs them. They import the main program
            again, so a script that calls this needs `if __name__ == "__main__"`.
        overwrite: remove an older run first.
        as_json: print the summary as JSON.
        at_end: given the outcome in place of printing it, in the main process.

    Returns:
        Whether all steps are done; false after Ctrl-C or SIGTERM, and the same call continues.

    Raises:
        SohesError: if the run cannot start or diverges.
        PartialFailure: if a photograph could not be read, after the last step.
    """
    check_device(device)
    _refuse_own_start(sources, out, overwrite)
    phase, shard = phase_of(config), shard_of_environment()
    source = sources.open()
    learner = make_trainee(config, device, sources.init)
    require_divisible(config.optimizer.batch_size, learner.accelerator)
    by_main(learner.accelerator, lambda: source.sha256)  # which reads every label once; the others need no hash
    main = learner.accelerator.is_main_process
    run = RunFolder(out, phase.kind, _description(sources, source, out, learner) if main else {})
    by_main(learner.accelerator, lambda: run.begin(overwrite))
    outcome = Outcome(out, len(source), config.optimizer.steps, config.optimizer.batch_size)
    best = _resume(learner, run, outcome)
    if main:
        announce(_described(learner), learner.accelerator, learner.precision, outcome)
    with Progress(outcome, main) as progress:
        if not outcome.finished:
            workers = default_workers(learner.accelerator, shard) if workers < 0 else workers
            _train(learner, source, run, outcome, progress, best, workers)
    if not main:
        return outcome.finished
    if at_end is not None:
        at_end(outcome)
        return conclude(outcome, "model")
    trained = "" if out == default_checkpoint() else f" --checkpoint {shlex.quote(str(out))}"
    print_outcome(
        outcome,
        as_json,
        phase.shown,
        (f"The model is {out / MODEL_NAME}.", f"Next: sohes segment IMAGE --tree{trained}"),
    )
    return conclude(outcome, "model")


def _refuse_own_start(sources: Sources, out: Path, overwrite: bool) -> None:
    """Refuse to remove the model that a run is to start from."""
    if overwrite and sources.init is not None and find_model(sources.init).resolve().is_relative_to(out.resolve()):
        message = f"--init {sources.init} lies in --out {out}, whose run --overwrite removes."
        raise UsageError(message, "Name another folder with --out.")


def _description(sources: Sources, source: LabeledPhotographs, out: Path, learner: Trainee) -> dict[str, Any]:
    """The content of `run.json`; paths are relative to it, so that all can move together, and tell no run from another."""
    config = to_plain(learner.config)
    config["optimizer"]["precision"] = learner.precision
    inputs = {
        "photographs": len(source),
        "labels_sha256": source.sha256,
        "label_path": os.path.relpath(source.source.path, out),
        "image_path": os.path.relpath(source.images, out),
        "start": os.path.relpath(sources.init, out) if sources.init else "",
        "start_sha256": file_sha256(find_model(sources.init)) if sources.init else "",
    }
    return phase_of(learner.config).kind.describe(config, inputs, "scipy")


def _resume(learner: Trainee, run: RunFolder, outcome: Outcome) -> float:
    """Go on from the newest checkpoint, if there is one; the best validation loss so far."""
    newest = run.latest()
    best = float("inf")
    if newest is not None:
        description = learner.load(newest)
        outcome.resume(description["step"], [str(message) for message in description.get("failed", [])])
        best = float("inf") if description.get("best") is None else float(description["best"])
    require_same_step(outcome.done, run.path)
    return best


def _described(learner: Trainee) -> str:
    model = learner.config.model
    parameters = sum(p.numel() for p in learner.network.parameters())
    return f"{model.backbone} with adapter, {model.queries} queries, {parameters / 1e6:.1f} million parameters"


def _train(
    learner: Trainee,
    source: LabeledPhotographs,
    run: RunFolder,
    outcome: Outcome,
    progress: Progress,
    best: float,
    workers: int,
) -> None:
    """Take the steps that are left, or those until a signal says to stop."""
    config, accelerator = learner.config, learner.accelerator
    training, held_out = split_photographs(len(source), config.data.validation_of(len(source)), config.run.seed)
    left = open_batches(
        TrainingExamples(
            source, training, config.data, config.run.seed, config.views if isinstance(config, CorrectConfig) else None
        ),
        partial(collate, stride=STRIDE),
        batch_size=config.optimizer.batch_size,
        first_step=outcome.done,
        steps=outcome.steps,
        workers=workers,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        pin_memory=accelerator.device.type == "cuda",
    )
    validation, shown = (
        ValidationExamples(source, chosen, config.data)
        for chosen in (held_out, (held_out if len(held_out) else training)[:_PICTURED])
    )
    with MetricsLog(run.path, outcome.done) if accelerator.is_main_process else nullcontext() as log:
        loop = Loop(learner, run, outcome, progress, log, validation, shown, best)
        take_steps(left, loop.take, loop.save, accelerator)
