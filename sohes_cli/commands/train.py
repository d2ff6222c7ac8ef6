"""`sohes train`: labels and their photographs -> a model (phases 2 and 3)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sohes_cli.commands.options import AsJson, Assignments, ConfigFile, OverwriteRun, Readers, TrainingDevice  # noqa: TC001 (Typer reads the annotations)
from sohes_cli.errors import UsageError
from sohes_cli.runs.interruption import INTERRUPTED

if TYPE_CHECKING:
    from sohes_cli.training.config import TrainConfig

__all__ = ["Phase", "train"]


class Phase(StrEnum):
    """The phases of training."""

    instruct = "instruct"
    correct = "correct"


def train(
    phase: Annotated[
        Phase, typer.Option(help="instruct: learn from the labels of sohes explore; correct: go on with a teacher.")
    ] = Phase.instruct,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Label folder of sohes explore, or a COCO annotation file.",
            show_default="labels, in phase correct those of --init",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the photographs, if not the one that the labels name.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the run; an unfinished one is continued.", show_default="runs/PHASE"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Size of the model and of the run: tiny (two CPU cores), small (one GPU) or base.", show_default="tiny"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Photographs a step, of all processes together.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate of AdamW.", show_default=False)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square that photographs are cropped to.", show_default=False)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Of the ViT: pretrained, random, a file or a run of sohes pretrain.", show_default=False),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Model to start from: a run of sohes train (by default runs/instruct for phase correct), or a Mask2Former checkpoint.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    settings: Assignments = None,
    workers: Readers = -1,
    device: TrainingDevice = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out with its own labels and settings.")
    ] = False,
    overwrite: OverwriteRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on labels, to segment any photograph.

    Example: sohes train --phase instruct
    """
    from accelerate import PartialState

    from sohes_cli.training.config import train_config
    from sohes_cli.training.phases import PHASES
    from sohes_cli.training.session import Sources, corrected_run, resumed_run, train_run

    flags: dict[str, Any] = {
        "optimizer.steps": steps,
        "optimizer.batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "data.image_size": image_size,
        "model.weights": weights,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    folder = out or Path("runs") / phase.value
    sources = Sources(labels, images, init)
    if phase is Phase.correct and (preset or weights):
        option = "--preset" if preset else "--weights"
        raise UsageError(
            f"{option} belongs to --phase instruct: phase correct goes on from a model, with its settings.",
            "Name the model with --init.",
        )
    resolved: TrainConfig
    if resume:
        sources, resolved = resumed_run(folder, sources, settings or (), given, PHASES[phase])
    elif phase is Phase.correct:
        sources, resolved = corrected_run(sources, config, settings or (), given)
    else:
        resolved = train_config(preset or "tiny", config, settings or (), given)
    finished = train_run(
        sources, folder, resolved, device=device, workers=workers, overwrite=overwrite, as_json=as_json
    )
    PartialState().destroy_process_group()
    if not finished:
        raise typer.Exit(INTERRUPTED)
