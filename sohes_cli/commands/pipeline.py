"""`sohes pipeline`: a folder of photographs -> labels, a model, a better one, and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sohes_cli.commands import options
from sohes_cli.commands.options import option
from sohes_cli.errors import UsageError
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["pipeline"]


def pipeline(
    images: options.ImageFolder,
    out: Annotated[Path, options.folder_out("Folder of all stages to begin or continue.")] = Path("work"),
    ground_truth: Annotated[Path | None, option("COCO annotation file on which each phase is scored.", "--gt")] = None,
    truth_images: Annotated[Path | None, option("Image folder of --gt.", "--gt-images", default="IMAGES")] = None,
    preset: Annotated[
        str, typer.Option(help="Size of model and training: tiny (two CPU cores), small (one GPU) or base.")
    ] = "tiny",
    config: options.ConfigFile = None,
    settings: Annotated[
        list[str] | None,
        option(
            "One setting of explore, instruct, correct or segment (without groups); may be repeated.",
            "--set",
            metavar="STAGE.GROUP.NAME=VALUE",
        ),
    ] = None,
    workers: options.TrainingWorkers = -1,
    device: options.TrainingDevice = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the results of earlier pipelines in --out first.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Run all phases on a folder of photographs, in order.

    Example: sohes pipeline ./images --out work
    """
    if truth_images is not None and ground_truth is None:
        raise UsageError(
            "--gt-images names the images of --gt, which is missing.",
            "Give the annotation file with --gt, or leave it out.",
        )
    from sohes_cli.explore.backbones import check_backbone
    from sohes_cli.pipeline.config import pipeline_config, stage_named

    resolved = pipeline_config(preset, config, settings or ())
    with stage_named("explore"):
        check_backbone(resolved.explore.features)
    from accelerate import PartialState

    from sohes_cli.pipeline.session import run_pipeline
    from sohes_cli.pipeline.stages import PipelineInputs

    inputs = PipelineInputs(images, ground_truth, truth_images)
    finished = run_pipeline(inputs, out, resolved, device=device, workers=workers, overwrite=overwrite, as_json=as_json)
    PartialState().destroy_process_group()
    if not finished:
        raise typer.Exit(INTERRUPTED)
