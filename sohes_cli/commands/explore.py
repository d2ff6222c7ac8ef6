"""`sohes explore`: a folder of photographs -> a label folder (phase 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sohes_cli.commands.options import AsJson, Assignments, ConfigFile  # noqa: TC001 (Typer reads the annotations)
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["explore"]


def explore(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="Folder of photographs, searched with its sub-folders.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Label folder to write; an unfinished one is continued.")
    ] = Path("labels"),
    image_list: Annotated[
        Path | None,
        typer.Option("--list", help="Text file that names the images to label, one path a line.", show_default=False),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Settings to start from: default (no download) or paper (DINO ViT-B/8).")
    ] = "default",
    backbone: Annotated[
        str | None,
        typer.Option(help="color-texture, a run of sohes pretrain, or any timm ViT, such as vit_base_patch8_224.dino."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights file of the ViT (.safetensors or .pth), or the word random.", show_default=False),
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Merging thresholds, decreasing, such as 0.6,0.5,0.4.", show_default=False)
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(help="Mask refinement: none, guided, superpixels, crf or cascadepsp.", show_default=False),
    ] = None,
    config: ConfigFile = None,
    settings: Assignments = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0 takes one for each core.")] = 0,
    device: Annotated[str, typer.Option(help="Device of a ViT: auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the labels in --out first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the masks of all photographs and which is part of which.

    Example: sohes explore ./images --out labels/
    """
    from sohes_cli.explore.config import explore_config
    from sohes_cli.explore.session import explore_folder

    flags: dict[str, Any] = {
        "features.backbone": backbone,
        "features.weights": weights,
        "merging.thresholds": thresholds,
        "refinement.method": refine,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    resolved = explore_config(preset, config, settings or (), given)
    if not explore_folder(
        images,
        out,
        resolved,
        workers=workers,
        device=device,
        overwrite=overwrite,
        as_json=as_json,
        image_list=image_list,
    ):
        raise typer.Exit(INTERRUPTED)
