"""`sohes segment`: photographs -> masks and their forest, by a trained model or phase 1."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003 (Typer reads the annotations)
from typing import Annotated

import typer

from sohes_cli.errors import UsageError
from sohes_cli.runs.interruption import INTERRUPTED

__all__ = ["ForestSource", "MaskRefinement", "SegmentMethod", "segment"]


class ForestSource(StrEnum):
    """Where the forest comes from."""

    head = "head"
    geometry = "geometry"


class MaskRefinement(StrEnum):
    """What happens to the masks' edges."""

    none = "none"
    superpixels = "superpixels"


class SegmentMethod(StrEnum):
    """What finds the masks."""

    model = "model"
    explore = "explore"


def segment(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="Photographs and folders of them.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Label folder to write, with pictures; an unfinished one is continued.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,  # not a Path, to which ./bundled is bundled
        typer.Option(
            help="Run of sohes train, its model file, or bundled for the model of the package.",
            show_default="runs/correct, runs/instruct or else bundled, if there is one",
        ),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="Print the forest of every photograph.")] = False,
    forest: Annotated[
        ForestSource | None,
        typer.Option(
            help="Who says what is part of what: the ancestor head, or the masks' geometry.", show_default="head"
        ),
    ] = None,
    refine: Annotated[
        MaskRefinement | None,
        typer.Option(
            help="superpixels redraws masks along the photograph's edges, which helps small models.",
            show_default="the model's own, or none",
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Views that vote on the masks, up to 8: other sizes, and mirrored. More find more and take longer.",
            show_default="the model's own, or 1",
        ),
    ] = None,
    cut_level: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Also write a flat partition: the forest cut at this level, 0 for the roots.",
            show_default=False,
        ),
    ] = None,
    granularity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="The same, cut at this share of each forest's depth.", show_default=False),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Least score of a mask.", show_default="0.01")] = None,
    max_masks: Annotated[int | None, typer.Option(help="Most masks of a photograph.", show_default="1000")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Longer side that the model sees in pixels.", show_default="the model's own, or as trained"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Photographs in one pass.", show_default="8 on a GPU, over --views; 1 on a CPU"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="auto")] = None,
    method: Annotated[
        SegmentMethod | None,
        typer.Option(
            help="model, or explore: phase 1 on each photograph, which needs no model.",
            show_default="model if there is one, else explore",
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Draw the masks of every photograph into --out.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the labels in --out first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Find masks and their forest in photographs.

    Example: sohes segment photo.jpg --tree
    """
    if cut_level is not None and granularity is not None:
        raise UsageError("--cut-level and --granularity both say where to cut.", "Leave one of them out.")
    from sohes_cli.inference.choice import choose_method
    from sohes_cli.inference.inputs import gather_images
    from sohes_cli.inference.session import Cut, Delivery, segment_images

    cut = None if cut_level is None and granularity is None else Cut(cut_level or 0, granularity)
    delivery = Delivery(out, tree, as_json, cut, pictures, overwrite)
    kept = {"min_score": min_score, "max_masks": max_masks, "views": views}
    settings = {"forest": forest and forest.value, "refine": refine and refine.value, **kept}
    place = {"checkpoint": checkpoint, "size": size, "batch_size": batch_size, "device": device}
    found = gather_images(images, out)
    if not segment_images(found, choose_method(method and method.value, {**place, **settings}), delivery):
        raise typer.Exit(INTERRUPTED)
