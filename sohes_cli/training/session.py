"""One run of `sohes train`: open labels, photographs and the run's folder, take the steps that are left, sum up."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes_cli.data.batch import collate
from sohes_cli.data.examples import TrainingExamples, ValidationExamples, split_photographs
from sohes_cli.errors import UsageError
from sohes_cli.model.config import STRIDE
from sohes_cli.model.location import MODEL_NAME, default_checkpoint, find_model
from sohes_cli.runs.devices import check_device
from sohes_cli.runs.files import file_sha256
from sohes_cli.runs.shards import shard_of_environment
from sohes_cli.settings import resolve, to_plain
from sohes_cli.training.correct_config import CorrectConfig, correct_config
from sohes_cli.training.distribution import by_main, default_workers, require_divisible, require_same_step
from sohes_cli.training.initial import settings_of
from sohes_cli.training.loading import open_batches
from sohes_cli.training.loop import TrainLoop, run_loop
from sohes_cli.training.phases import CORRECT, INSTRUCT, Phase, Trainee, make_trainee, phase_of
from sohes_cli.training.report import TrainingOutcome, announce_training, conclude_training
from sohes_cli.training.run_folder import RunFolder, read_run
from sohes_cli.training.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sohes_cli.data.sources import LabeledPhotographs
    from sohes_cli.training.config import TrainConfig

__all__ = ["corrected_run", "resumed_run", "train_run"]

_PICTURED = 4


def resumed_run(
    out: Path, sources: Sources, assignments: Sequence[str], flags: Mapping[str, Any], phase: Phase = INSTRUCT
) -> tuple[Sources, TrainConfig]:
    """Read the sources and settings of a run to continue, overridden by the given ones.

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
    """Read the sources and settings of a run of phase 3 from the run before it, overridden by the given ones.

    Args:
        sources: given sources; the default model is that of `./runs/instruct`, the default labels are those of its run.
        file: TOML file of settings; see `sohes_cli.settings.resolve`, as for the others.
        assignments: `group.name=value` strings.
        flags: values by GROUP.NAME.

    Raises:
        UsageError: if there is no model to start from.
        WeightsError: if it is not one of ours, or damaged.
        ConfigError: if a setting is wrong.
    """
    init = sources.start()
    config = correct_config(settings_of(init), file, assignments, flags)
    if sources.labels is None:
        folder = init if init.is_dir() else init.parent
        there = read_run(folder, CORRECT.kind if CORRECT.kind.marker.is_in(folder) else INSTRUCT.kind)
        found = Sources() if there is None else _sources_of(folder, there)
        if found.labels is not None and not found.labels.exists():
            raise UsageError(
                f"The labels {found.labels}, from which {init} learned, are not there.", "Name labels with --labels."
            )
        sources = replace(found, images=sources.images or found.images)
    return replace(sources, init=init), config


def _sources_of(out: Path, there: Mapping[str, Any]) -> Sources:
    """Return the sources of the run in `out`, whose paths are relative to the folder."""
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
    at_end: Callable[[TrainingOutcome], object] | None = None,
) -> bool:
    """Train a model on labeled photographs, or continue a run.

    Args:
        out: the folder of the run.
        device: `auto` or `cpu`.
        workers: processes that read and crop; -1 for one a core, as far as the device needs them. They import the main
            program again, so a script that calls this needs `if __name__ == "__main__"`.
        overwrite: remove an older run first.
        as_json: print the summary as JSON.
        at_end: called with the outcome instead of printing it, in the main process.

    Returns:
        True if all steps are done; False after Ctrl-C or SIGTERM, where the same call continues.

    Raises:
        SohesError: if the run cannot start or diverges.
        PartialFailure: if a photograph could not be read, after the last step.
    """
    check_device(device)
    _refuse_own_start(sources, out, overwrite)
    phase, shard = phase_of(config), shard_of_environment()
    source = sources.open()
    learner = make_trainee(config, device, sources.init)
    accelerator = learner.accelerator
    require_divisible(config.optimizer.batch_size, accelerator)
    by_main(accelerator, lambda: source.sha256)  # reads every label once; the other processes need no hash
    main = accelerator.is_main_process
    run = RunFolder(out, phase.kind, _description(sources, source, out, learner) if main else {})
    by_main(accelerator, lambda: run.begin(overwrite))
    outcome = TrainingOutcome(out, len(source), config.optimizer.steps, config.optimizer.batch_size)
    best = _resume(learner, run, outcome)
    if main:
        announce_training(_described(learner), accelerator, learner.precision, outcome)
    workers = default_workers(accelerator, shard) if workers < 0 else workers
    _train(learner, source, run, outcome, best, workers)
    if not main:
        return outcome.finished
    checkpoint = "" if out == default_checkpoint() else f" --checkpoint {shlex.quote(str(out))}"
    ending = f"The model is {out / MODEL_NAME}.", f"Next: sohes segment IMAGE --tree{checkpoint}"
    return conclude_training(outcome, "model", phase.shown, ending, as_json=as_json, at_end=at_end)


def _refuse_own_start(sources: Sources, out: Path, overwrite: bool) -> None:
    """Refuse to remove the model that a run starts from."""
    if overwrite and sources.init is not None and find_model(sources.init).resolve().is_relative_to(out.resolve()):
        message = f"--init {sources.init} is inside --out {out}, whose run --overwrite removes."
        raise UsageError(message, "Name another folder with --out.")


def _description(sources: Sources, source: LabeledPhotographs, out: Path, learner: Trainee) -> dict[str, Any]:
    """Return the content of `run.json`; its paths are relative to it, so that all can move, and identify no run."""
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


def _resume(learner: Trainee, run: RunFolder, outcome: TrainingOutcome) -> float:
    """Continue from the newest checkpoint, if any; return the lowest validation loss so far."""
    newest, best = run.latest(), None
    if newest is not None:
        description = learner.load(newest)
        outcome.resume(description["step"], [str(message) for message in description.get("failed", [])])
        best = description.get("best")
    require_same_step(outcome.done, run.path)
    return float("inf") if best is None else float(best)


def _described(learner: Trainee) -> str:
    model = learner.config.model
    parameters = sum(p.numel() for p in learner.network.parameters())
    return f"{model.backbone} with adapter, {model.queries} queries, {parameters / 1e6:.1f} million parameters"


def _train(
    learner: Trainee, source: LabeledPhotographs, run: RunFolder, outcome: TrainingOutcome, best: float, workers: int
) -> None:
    """Take the steps that are left, or those until a signal."""
    config, accelerator = learner.config, learner.accelerator
    training, held_out = split_photographs(len(source), config.data.validation_of(len(source)), config.run.seed)
    views = config.views if isinstance(config, CorrectConfig) else None
    left = open_batches(
        TrainingExamples(source, training, config.data, config.run.seed, views),
        partial(collate, stride=STRIDE),
        batch_size=config.optimizer.batch_size,
        first_step=outcome.done,
        steps=outcome.steps,
        workers=workers,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        pin_memory=accelerator.device.type == "cuda",
    )
    pictured = (held_out if len(held_out) else training)[:_PICTURED]
    validation, shown = (ValidationExamples(source, chosen, config.data) for chosen in (held_out, pictured))
    run_loop(
        accelerator,
        run,
        outcome,
        lambda bar, log: TrainLoop(learner, run, outcome, bar, log, validation, shown, best),
        left,
    )
