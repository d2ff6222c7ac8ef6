"""`sohes explore`: a folder of photographs -> a label folder (phase 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sohes_cli.commands import options
from sohes_cli.commands.options import option
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["explore"]


def explore(
    images: options.ImageFolder,
    out: Annotated[Path, options.folder_out("Label folder to write or continue.")] = Path("labels"),
    listed: Annotated[Path | None, option("Text file of image paths to label, one a line.", "--list")] = None,
    preset: Annotated[str, typer.Option(help="Preset: default (no download) or paper (DINO ViT-B/8).")] = "default",
    backbone: Annotated[
        str | None,
        typer.Option(help="color-texture, a run of sohes pretrain, or a timm ViT such as vit_base_patch8_224.dino."),
    ] = None,
    weights: Annotated[str | None, option("Weights file of the ViT (.safetensors or .pth), or random.")] = None,
    thresholds: Annotated[str | None, option("Decreasing merging thresholds, such as 0.6,0.5,0.4.")] = None,
    refine: Annotated[str | None, option("Mask refinement: none, guided, superpixels, crf or cascadepsp.")] = None,
    config: options.ConfigFile = None,
    settings: options.Assignments = None,
    workers: options.Workers = 0,
    device: Annotated[str, options.INFERENCE_DEVICE] = "auto",
    overwrite: options.OverwriteLabels = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the masks of photographs and their part-of hierarchy.

    Example: sohes explore ./images --out labels/
    """
    from sohes_cli.explore.backbones import check_backbone
    from sohes_cli.explore.config import explore_config

    flags = {
        "features.backbone": backbone,
        "features.weights": weights,
        "merging.thresholds": thresholds,
        "refinement.method": refine,
    }
    resolved = explore_config(preset, config, settings or (), flags)
    check_backbone(resolved.features)
    from sohes_cli.explore.session import explore_folder

    finished = explore_folder(
        images, out, resolved, workers=workers, device=device, overwrite=overwrite, as_json=as_json, image_list=listed
    )
    if not finished:
        raise typer.Exit(INTERRUPTED)
