"""Path of a trained model: a given file or run folder, the newest run, or the package's own; imports no PyTorch."""

from __future__ import annotations

from pathlib import Path

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.vit import bundled

__all__ = [
    "HOW_TO_TRAIN",
    "MODEL_NAME",
    "NO_MODEL",
    "default_checkpoint",
    "find_model",
    "has_model",
    "model_file",
    "reason_for",
]

MODEL_NAME = "model.safetensors"

_RUNS = Path("runs")
_PHASES = ("correct", "instruct")  # the later phase first: it has the better model

_NO_RUN = f"neither {' nor '.join(str(_RUNS / phase) for phase in _PHASES)} has a {MODEL_NAME}"

NO_MODEL = f"{_NO_RUN}, and none ships with this version of sohes"
"""Reason for the lack of a default model, as a clause."""

HOW_TO_TRAIN = "`sohes explore IMAGES`, then `sohes train --phase instruct`"
"""Commands that train a model."""


def find_model(path: Path) -> Path:
    """Return the model file of a path: the file itself, or that of a run folder.

    Raises:
        UsageError: if it does not exist.
    """
    file = path / MODEL_NAME if path.is_dir() else path
    if file.is_file():
        return file
    if path.is_dir():
        hint = "Give the folder of a run of sohes train that has saved a checkpoint."
        raise UsageError(f"{path} has no {MODEL_NAME}.", hint)
    hint = "Give the folder of a run of sohes train, or its model.safetensors."
    raise UsageError(f"There is no model {path}.", hint)


def default_checkpoint(runs: Path = _RUNS) -> Path | None:
    """Return the folder of the newest phase below `runs` that has a model, or None."""
    folders = (runs / phase for phase in _PHASES)
    return next((folder for folder in folders if (folder / MODEL_NAME).is_file()), None)


def has_model() -> bool:
    """Return True if a model exists by default: that of a run, or the package's own."""
    return default_checkpoint() is not None or bundled.MODEL.ships


def reason_for(file: Path) -> str:
    """Return the reason for the choice of a default model file, as a clause."""
    return f"it ships with sohes, and {_NO_RUN}" if file == bundled.MODEL.path else "the newest phase in ./runs"


def model_file(path: str | Path | None) -> Path:
    """Resolve a model file.

    Args:
        path: a model file, a run folder, or `bundled` for the package's own model; None: `default_checkpoint`, or else
            the bundled model.

    Raises:
        UsageError: if the path has no model, or no model is bundled.
        WeightsError: if the bundled model is missing or damaged.
        SohesError: if no path is given and no default model exists.
    """
    if path is None and not has_model():
        raise SohesError(
            f"There is no trained model: {NO_MODEL}.",
            f"Train one ({HOW_TO_TRAIN}), give one with --checkpoint, or use --method explore, which needs none.",
        )
    found = (default_checkpoint() or bundled.BUNDLED) if path is None else path
    return bundled.MODEL.checked("--checkpoint") if str(found) == bundled.BUNDLED else find_model(Path(found))
