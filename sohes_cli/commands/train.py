"""`sohes train`: labels and their photographs -> a model (phase 2)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sohes_cli.commands.options import AsJson, Assignments, ConfigFile, OverwriteRun, Readers, TrainingDevice  # noqa: TC001 (Typer reads the annotations)
from sohes_cli.explore.interruption import INTERRUPTED

__all__ = ["Phase", "train"]


class Phase(StrEnum):
    """The phases of training."""

    instruct = "instruct"


def train(
    phase: Annotated[Phase, typer.Option(help="instruct: learn from the labels of sohes explore.")] = Phase.instruct,
    labels: Annotated[
        Path | None, typer.Option(help="Label folder of sohes explore, or a COCO annotation file.", show_default="labels")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the photographs, if not the one that the labels name.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; an unfinished one is continued.", show_default="runs/PHASE")
    ] = None,
    preset: Annotated[str, typer.Option(help="Size of the model and of the run: tiny (two CPU cores), small (one GPU) or base.")] = "tiny",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Photographs a step, of all processes together.", show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Largest learning rate of AdamW.", show_default=False)] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square that photographs are cropped to.", show_default=False)] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of the ViT: pretrained, random, a file or a run of sohes pretrain.", show_default=False)
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Model to start from: a run of sohes train, or a Mask2Former checkpoint.", show_default=False)
    ] = None,
    config: ConfigFile = None,
    settings: Assignments = None,
    workers: Readers = -1,
    device: TrainingDevice = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out with its own labels and settings.")] = False,
    overwrite: OverwriteRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on labels, to segment any photograph.

    Example: sohes train --phase instruct
    """
    from accelerate import PartialState

    from sohes_cli.training.config import train_config
    from sohes_cli.training.session import Sources, resumed_run, train_run

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
    if resume:
        sources, resolved = resumed_run(folder, sources, settings or (), given)
    else:
        resolved = train_config(preset, config, settings or (), given)
    finished = train_run(sources, folder, resolved, device=device, workers=workers, overwrite=overwrite, as_json=as_json)
    PartialState().destroy_process_group()
    if not finished:
        raise typer.Exit(INTERRUPTED)
