"""`sohes pretrain`: a folder of photographs -> a self-supervised backbone (phase 0)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sohes_cli.commands.options import AsJson, Assignments, ConfigFile, OverwriteRun, Readers, TrainingDevice  # noqa: TC001 (Typer reads the annotations)
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["pretrain"]


def pretrain(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="Folder of photographs or of .tar shards of them, or one shard.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; an unfinished one is continued.")] = Path(
        "runs/pretrain"
    ),
    preset: Annotated[
        str, typer.Option(help="Settings to start from: default (one GPU) or cpu (two cores).")
    ] = "default",
    epochs: Annotated[int | None, typer.Option(help="Passes over the photographs.", show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps, in place of --epochs.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Photographs a step, of all processes together.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate of AdamW.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A timm ViT, such as vit_small_patch16_224.", show_default=False)
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="Side of a patch in pixels; 0 for the model's own.", show_default=False)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights file or run's folder to start from; random weights without.", show_default=False),
    ] = None,
    config: ConfigFile = None,
    settings: Assignments = None,
    workers: Readers = -1,
    device: TrainingDevice = "auto",
    overwrite: OverwriteRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a backbone on unlabeled photographs of your own kind.

    Example: sohes pretrain ./images --out runs/pretrain
    """
    from accelerate import PartialState

    from sohes_cli.pretrain.config import pretrain_config
    from sohes_cli.pretrain.session import pretrain_folder

    flags: dict[str, Any] = {
        "optimizer.epochs": epochs,
        "optimizer.steps": steps,
        "optimizer.batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "model.weights": weights,
    }
    if model is not None:  # another ViT comes with its own numbers
        flags |= {
            "model.name": model,
            "model.patch_size": 0,
            "model.embed_dim": 0,
            "model.depth": 0,
            "model.num_heads": 0,
        }
    if patch_size is not None:
        flags["model.patch_size"] = patch_size
    given = {name: value for name, value in flags.items() if value is not None}
    resolved = pretrain_config(preset, config, settings or (), given)
    finished = pretrain_folder(
        images, out, resolved, device=device, workers=workers, overwrite=overwrite, as_json=as_json
    )
    PartialState().destroy_process_group()
    if not finished:
        raise typer.Exit(INTERRUPTED)
