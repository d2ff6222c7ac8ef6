"""`sohes pretrain`: a folder of photographs -> a self-supervised backbone (phase 0)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sohes_cli.commands import options
from sohes_cli.commands.options import option
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["pretrain"]


def pretrain(
    images: Annotated[
        Path,
        options.argument(
            "IMAGES",
            "Folder of photographs or .tar shards of them, or one shard.",
            callback=options.check_shard_or_folder,
        ),
    ],
    out: Annotated[Path, options.folder_out("Folder of the run to begin or continue.")] = Path("runs/pretrain"),
    preset: Annotated[str, typer.Option(help="Preset: default (one GPU) or cpu (two cores).")] = "default",
    epochs: Annotated[int | None, option("Passes over the photographs.")] = None,
    steps: Annotated[int | None, option("Optimizer steps, in place of --epochs.")] = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    model: Annotated[str | None, option("timm ViT, such as vit_small_patch16_224.")] = None,
    patch_size: Annotated[int | None, option("Side of a patch in pixels; 0 for the model's own.")] = None,
    weights: Annotated[str | None, option("Weights file or run to start from; random weights if omitted.")] = None,
    config: options.ConfigFile = None,
    settings: options.Assignments = None,
    workers: options.TrainingWorkers = -1,
    device: options.TrainingDevice = "auto",
    overwrite: options.OverwriteRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a backbone on unlabeled photographs.

    Example: sohes pretrain ./images --out runs/pretrain
    """
    from sohes_cli.pretrain.config import pretrain_config

    flags: dict[str, Any] = {
        "optimizer.epochs": epochs,
        "optimizer.steps": steps,
        "optimizer.batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "model.weights": weights,
    }
    if model is not None:  # another ViT has other numbers
        own = ("patch_size", "embed_dim", "depth", "num_heads")
        flags |= {"model.name": model, **{f"model.{name}": 0 for name in own}}
    if patch_size is not None:
        flags["model.patch_size"] = patch_size
    resolved = pretrain_config(preset, config, settings or (), flags)
    from accelerate import PartialState

    from sohes_cli.pretrain.session import pretrain_folder

    finished = pretrain_folder(
        images, out, resolved, device=device, workers=workers, overwrite=overwrite, as_json=as_json
    )
    PartialState().destroy_process_group()
    if not finished:
        raise typer.Exit(INTERRUPTED)
