"""Make the weights of a run those that ship with the package: `python -m sohes_benchmarks.bundle runs/correct`.

A model of `sohes train` or a backbone of `sohes pretrain` is stored in half precision, which halves the file; whole
numbers, such as the counters of batch norms, stay what they are, and so does what the file says of its run. The hash
that is printed goes into `sohes_cli/vit/bundled.py`, and no other file is then loaded as `bundled`; the other facts
belong into the model card beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from sohes_cli.errors import SohesError, UsageError, WeightsError
from sohes_cli.inference.config import OWN_SETTINGS, check_own
from sohes_cli.model.files import MODEL_FORMAT
from sohes_cli.model.location import find_model
from sohes_cli.runs.files import file_sha256, write_atomically
from sohes_cli.vit import bundled
from sohes_cli.vit.pretrained import BACKBONE_FORMAT, BACKBONE_NAME, find_backbone
from sohes_cli.vit.tensor_file import read_tensors, stored_description, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["LARGEST_BYTES", "bundle"]

LARGEST_BYTES = 30_000_000
"""Of all bundled weights together."""

_FACTS = ("step", "photographs", "labels_sha256", "image_size", OWN_SETTINGS, "source_sha256")
_SHOWN_NAMES = 3


def bundle(source: Path, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Write the weights of a run in half precision to their place in the package.

    Args:
        source: the folder of a run, or its file.
        settings: with which a model is to work unless others are given, some of `image_size`, `views` and `refine`;
            without any, those that its file names already.

    Returns:
        What a model card says of the file: its size, what it tells of its run, and its SHA-256.

    Raises:
        UsageError: if there are no such weights, a backbone is given settings, or all bundled files together would be
            larger than `LARGEST_BYTES`.
        ConfigError: if a setting is wrong.
        WeightsError: if they are damaged, of another kind, or too large for half precision.
        StoreError: if the file cannot be written.
    """
    is_backbone = _is_backbone(source)
    if settings and is_backbone:
        raise UsageError(f"{source} is a backbone, which has no settings of its own.", "Leave them out.")
    check_own(settings or {})
    file = find_backbone(str(source.absolute())) if is_backbone else find_model(source)
    target = (bundled.BACKBONE if is_backbone else bundled.MODEL).path
    tensors, description = read_tensors(file, BACKBONE_FORMAT if is_backbone else MODEL_FORMAT)
    description = _without_paths(
        {"source_sha256": file_sha256(file), **description}
    )  # bundled again, the first source's hash stays
    if settings:
        description = {**description, OWN_SETTINGS: dict(settings)}
    with tempfile.TemporaryDirectory() as folder:
        halved = Path(folder) / target.name
        write_tensors(halved, _halved(tensors, file), description)
        _require_room(halved.stat().st_size, target)
        write_atomically(target, [halved.read_bytes()])
    told = {name: str(description[name]) for name in _FACTS if name in description}
    return {"file": str(target), "bytes": str(target.stat().st_size), **told, "sha256": file_sha256(target)}


def _without_paths(description: dict[str, Any]) -> dict[str, Any]:
    """Drop the folders of initial weights from a description."""
    config = description.get("config", {})
    model = config.get("model", {})
    if "weights" not in model:
        return description
    return {**description, "config": {**config, "model": {**model, "weights": Path(model["weights"]).name}}}


def _is_backbone(source: Path) -> bool:
    """True if a run or file is of `sohes pretrain`; anything else must be a model."""
    if source.is_dir():
        return (source / BACKBONE_NAME).is_file()
    return stored_description(source).get("format") == BACKBONE_FORMAT


def _halved(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    beyond = [
        name for name, tensor in halved.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if beyond:
        raise WeightsError(
            f"{file} has numbers that half precision cannot hold, in {', '.join(beyond[:_SHOWN_NAMES])}.",
            f"The largest is {torch.finfo(torch.half).max:,.0f}: bundle another checkpoint.",
        )
    return halved


def _require_room(size: int, target: Path) -> None:
    others = sum(path.stat().st_size for path in target.parent.glob("*.safetensors") if path != target)
    if size + others > LARGEST_BYTES:
        raise UsageError(
            f"{target.name} would have {size / 1e6:.1f} MB beside {others / 1e6:.1f} MB of other bundled weights, "
            f"but all together may have {LARGEST_BYTES / 1e6:.0f} MB.",
            "Bundle a smaller model, or remove another file.",
        )


def main(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run of sohes train or sohes pretrain, or its file.", show_default=False),
    ],
    size: Annotated[int | None, typer.Option(help="Its own --size in sohes segment.", show_default=False)] = None,
    views: Annotated[int | None, typer.Option(help="Its own --views.", show_default=False)] = None,
    refine: Annotated[str | None, typer.Option(help="Its own --refine.", show_default=False)] = None,
) -> None:
    """Make the weights of a run those that ship with the package, in half precision.

    Example: python -m sohes_benchmarks.bundle runs/correct
    """
    settings = {"image_size": size, "views": views, "refine": refine}
    try:
        facts = bundle(source, {name: value for name, value in settings.items() if value is not None})
    except SohesError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")
    typer.echo("This sha256 goes into sohes_cli/vit/bundled.py, and what is above into the model card.", err=True)


if __name__ == "__main__":
    typer.run(main)
