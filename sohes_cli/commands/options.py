"""Arguments and options of several commands, each declared once.

Folders and devices are checked while the command line is parsed, before any command imports PyTorch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sohes_cli.errors import UsageError

__all__ = [
    "INFERENCE_DEVICE",
    "AsJson",
    "Assignments",
    "BatchSize",
    "ConfigFile",
    "ImageFolder",
    "LearningRate",
    "OverwriteFile",
    "OverwriteLabels",
    "OverwriteRun",
    "TrainingDevice",
    "TrainingWorkers",
    "Workers",
    "argument",
    "check_images",
    "check_shard_or_folder",
    "folder_out",
    "option",
]


def folder_out(text: str, show_default: bool | str = True) -> Any:
    """Make the option `--out` of a command that writes a folder, with its help text."""
    return typer.Option("--out", "-o", help=text, show_default=show_default, callback=_check_out)


def option(text: str, *names: str, default: str = "", **limits: Any) -> Any:
    """Make an option whose default is shown in these words, or not at all."""
    return typer.Option(*names, help=text, show_default=default or False, **limits)


def argument(metavar: str, text: str, **checks: Any) -> Any:
    """Make a positional argument whose default is not shown."""
    return typer.Argument(metavar=metavar, help=text, show_default=False, **checks)


def _check_out(out: Path | None) -> Path | None:
    if out is not None and os.path.isfile(out):  # noqa: PTH113 (Path.is_file raises for long names)
        raise UsageError(f"--out {out} is a file.", "Name a folder, which need not exist.")
    return out


def check_shard_or_folder(images: Path) -> Path:
    """Refuse a missing image folder; a file may be a shard."""
    return images if os.path.isfile(images) else _check_folder(images)  # noqa: PTH113


def check_images(images: list[Path]) -> list[Path]:
    """Refuse images and folders that do not exist."""
    from sohes_cli.images.listing import require_images

    require_images(images)
    return images


def _check_folder(images: Path) -> Path:
    from sohes_cli.images.listing import require_folder

    require_folder(images)
    return images


def _check_inference_device(device: str | None) -> str | None:
    from sohes_cli.runs.devices import check_device_name

    if device is not None:
        check_device_name(device)
    return device


def _check_training_device(device: str) -> str:
    from sohes_cli.runs.devices import check_device

    check_device(device)
    return device


ImageFolder = Annotated[
    Path, argument("IMAGES", "Folder of photographs, searched with its sub-folders.", callback=_check_folder)
]

ConfigFile = Annotated[Path | None, option("TOML file of settings.")]
Assignments = Annotated[list[str] | None, option("One setting; may be repeated.", "--set", metavar="GROUP.NAME=VALUE")]
BatchSize = Annotated[int | None, option("Photographs a step, over all processes.")]
LearningRate = Annotated[float | None, option("Largest learning rate of AdamW.")]

Workers = Annotated[int, typer.Option(min=0, help="Worker processes; 0 for one a core.")]
TrainingWorkers = Annotated[int, typer.Option(min=-1, help="Worker processes; -1 chooses, 0 uses none.")]
INFERENCE_DEVICE = typer.Option(help="auto (a GPU if any), cpu, cuda or cuda:N.", callback=_check_inference_device)
TrainingDevice = Annotated[str, typer.Option(help="auto or cpu.", callback=_check_training_device)]

OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
OverwriteLabels = Annotated[bool, typer.Option("--overwrite", help="Remove the labels in --out first.")]
OverwriteRun = Annotated[bool, typer.Option("--overwrite", help="Remove the run in --out first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
