"""`sohes pipeline`: a folder of photographs -> labels, a model, a better one, and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sohes_cli.commands.options import AsJson, ConfigFile, TrainingDevice  # noqa: TC001 (Typer reads the annotations)
from sohes_cli.errors import UsageError
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["pipeline"]


def pipeline(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="Folder of photographs, searched with its sub-folders.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; what is unfinished in it is continued.")
    ] = Path("work"),
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            "--gt", help="COCO annotation file; what each phase finds in its images is scored.", show_default=False
        ),
    ] = None,
    truth_images: Annotated[
        Path | None, typer.Option("--gt-images", help="Folder of the images that --gt lists.", show_default="IMAGES")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Size of the model and of its training: tiny (two CPU cores), small (one GPU) or base.")
    ] = "tiny",
    config: ConfigFile = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.GROUP.NAME=VALUE",
            help="One setting of explore, instruct, correct or segment (which has no groups); may be repeated.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=-1, help="Worker processes; -1 chooses, 0 uses none.")] = -1,
    device: TrainingDevice = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what earlier pipelines left in --out first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run all phases on a folder of photographs, in order.

    Example: sohes pipeline ./images --out work
    """
    if truth_images is not None and ground_truth is None:
        raise UsageError(
            "--gt-images names the images of --gt, which is missing.",
            "Give the annotation file with --gt, or leave it out.",
        )
    from accelerate import PartialState

    from sohes_cli.pipeline.config import pipeline_config
    from sohes_cli.pipeline.session import run_pipeline
    from sohes_cli.pipeline.stages import Inputs

    resolved = pipeline_config(preset, config, settings or ())
    inputs = Inputs(images, ground_truth, truth_images)
    finished = run_pipeline(inputs, out, resolved, device=device, workers=workers, overwrite=overwrite, as_json=as_json)
    PartialState().destroy_process_group()
    if not finished:
        raise typer.Exit(INTERRUPTED)
