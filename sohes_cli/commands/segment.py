"""`sohes segment`: photographs -> masks and their forest, by a trained model or phase 1."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sohes_cli.commands import options
from sohes_cli.commands.options import option
from sohes_cli.errors import UsageError
from sohes_cli.inference.config import ForestSource, MaskRefinement
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["SegmentMethod", "segment"]


class SegmentMethod(StrEnum):
    """Source of the masks: a trained model, or phase 1 on each photograph."""

    model = "model"
    explore = "explore"


def segment(
    images: Annotated[
        list[Path], options.argument("IMAGES", "Photographs and folders of them.", callback=options.check_images)
    ],
    out: Annotated[
        Path | None, options.folder_out("Label folder to write or continue, with pictures.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        str | None,  # no Path, which makes ./bundled of bundled
        option(
            "Run of sohes train, its model file, or bundled for the model of the package.",
            default="runs/correct, runs/instruct or bundled, the first that exists",
        ),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="Print the forest of every photograph.")] = False,
    forest: Annotated[
        ForestSource | None, option("Source of the forest: ancestor head, or geometry of the masks.", default="head")
    ] = None,
    refine: Annotated[
        MaskRefinement | None,
        option(
            "superpixels: redraw masks along the photograph's edges, a gain with small models.",
            default="the model's own, or none",
        ),
    ] = None,
    views: Annotated[
        int | None,
        option(
            "Scaled and mirrored views that vote on the masks, up to 8: slower, more masks.",
            default="the model's own, or 1",
        ),
    ] = None,
    cut_level: Annotated[
        int | None, option("Also write a partition: the forest cut at this level, 0 for roots.", min=0)
    ] = None,
    granularity: Annotated[float | None, option("The same, cut at this share of the depth.", min=0, max=1)] = None,
    min_score: Annotated[float | None, option("Least score of a mask.", default="0.01")] = None,
    max_masks: Annotated[int | None, option("Largest number of masks of a photograph.", default="1000")] = None,
    size: Annotated[
        int | None, option("Longer side of the model's input in pixels.", default="the model's own, or as trained")
    ] = None,
    batch_size: Annotated[
        int | None, option("Photographs a forward pass.", default="8 on a GPU, over --views; 1 on a CPU", min=1)
    ] = None,
    device: Annotated[str | None, options.INFERENCE_DEVICE] = None,
    method: Annotated[
        SegmentMethod | None,
        option(
            "model, or explore: phase 1 on each photograph, without a model.",
            default="model if there is one, else explore",
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Draw the masks of every photograph into --out.")
    ] = True,
    overwrite: options.OverwriteLabels = False,
    as_json: options.AsJson = False,
) -> None:
    """Find masks and their forest in photographs.

    Example: sohes segment photo.jpg --tree
    """
    if cut_level is not None and granularity is not None:
        raise UsageError("--cut-level and --granularity both say where to cut.", "Leave one of them out.")
    from sohes_cli.inference.choice import check_method, choose_method

    flags = {
        "checkpoint": checkpoint,
        "size": size,
        "batch_size": batch_size,
        "device": device,
        "forest": forest and forest.value,
        "refine": refine and refine.value,
        "min_score": min_score,
        "max_masks": max_masks,
        "views": views,
    }
    check_method(method, flags)
    from sohes_cli.inference.inputs import gather_images
    from sohes_cli.inference.session import Cut, OutputOptions, segment_images

    cut = None if cut_level is None and granularity is None else Cut(cut_level or 0, granularity)
    options = OutputOptions(out, tree, as_json, cut, pictures, overwrite)
    found = gather_images(images, out)
    if not segment_images(found, choose_method(method, flags), options):
        raise typer.Exit(INTERRUPTED)
