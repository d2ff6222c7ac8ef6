"""`sohes train`: labels and their photographs -> a model (phases 2 and 3)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sohes_cli.commands import options
from sohes_cli.commands.options import option
from sohes_cli.errors import UsageError
from sohes_cli.runs.interruption import INTERRUPTED

if TYPE_CHECKING:
    from sohes_cli.training.config import TrainConfig

__all__ = ["TrainingPhase", "train"]


class TrainingPhase(StrEnum):
    """Phases 2 and 3 of the method."""

    instruct = "instruct"
    correct = "correct"


def train(
    phase: Annotated[
        TrainingPhase,
        typer.Option(help="instruct: learn from the labels of sohes explore; correct: continue with a teacher."),
    ] = TrainingPhase.instruct,
    labels: Annotated[
        Path | None,
        option(
            "Label folder of sohes explore, or COCO annotation file.",
            default="labels, or those of --init in phase correct",
        ),
    ] = None,
    images: Annotated[Path | None, option("Image folder, if not the one that the labels name.")] = None,
    out: Annotated[Path | None, options.folder_out("Folder of the run to begin or continue.", "runs/PHASE")] = None,
    preset: Annotated[
        str | None, option("Size of model and training: tiny (two CPU cores), small (one GPU) or base.", default="tiny")
    ] = None,
    steps: Annotated[int | None, option("Optimizer steps.")] = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    image_size: Annotated[int | None, option("Side of the square crops.")] = None,
    weights: Annotated[
        str | None, option("ViT weights: pretrained, random, a file or a run of sohes pretrain.")
    ] = None,
    init: Annotated[
        Path | None,
        option(
            "Model to start from: a run of sohes train, or a Mask2Former checkpoint.",
            default="runs/instruct in phase correct",
        ),
    ] = None,
    config: options.ConfigFile = None,
    settings: options.Assignments = None,
    workers: options.TrainingWorkers = -1,
    device: options.TrainingDevice = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out with its own labels and settings.")
    ] = False,
    overwrite: options.OverwriteRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model on labels, to segment any photograph.

    Example: sohes train --phase instruct
    """
    from sohes_cli.training.config import train_config
    from sohes_cli.training.sources import Sources

    flags = {
        "optimizer.steps": steps,
        "optimizer.batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "data.image_size": image_size,
        "model.weights": weights,
    }
    folder = out or Path("runs") / phase.value
    sources, assignments = Sources(labels, images, init), settings or ()
    if phase is TrainingPhase.correct and (preset or weights):
        option = "--preset" if preset else "--weights"
        raise UsageError(
            f"{option} belongs to --phase instruct: phase correct goes on from a model, with its settings.",
            "Name the model with --init.",
        )
    resolved: TrainConfig
    if resume:
        from sohes_cli.training.phases import PHASES
        from sohes_cli.training.session import resumed_run

        sources, resolved = resumed_run(folder, sources, assignments, flags, PHASES[phase])
    elif phase is TrainingPhase.correct:
        sources.start()
        from sohes_cli.training.session import corrected_run

        sources, resolved = corrected_run(sources, config, assignments, flags)
    else:
        resolved = train_config(preset, config, assignments, flags)
        sources.found_labels()
    from accelerate import PartialState

    from sohes_cli.training.session import train_run

    finished = train_run(
        sources, folder, resolved, device=device, workers=workers, overwrite=overwrite, as_json=as_json
    )
    PartialState().destroy_process_group()
    if not finished:
        raise typer.Exit(INTERRUPTED)
