"""Where a model lies: the file of a path, of the newest run, or of the package; nothing here loads PyTorch."""

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
_PHASES = ("correct", "instruct")  # the later one is the better model

_NO_RUN = f"neither {' nor '.join(str(_RUNS / phase) for phase in _PHASES)} has a {MODEL_NAME}"

NO_MODEL = f"{_NO_RUN}, and none ships with this version of sohes"
"""Why there is no model where none is named, as a part of a sentence."""

HOW_TO_TRAIN = "`sohes explore IMAGES`, then `sohes train --phase instruct`"
"""What makes one."""


def find_model(path: Path) -> Path:
    """The model file that a path means: itself, or that of a run's folder.

    Raises:
        UsageError: if there is none.
    """
    if path.is_dir():
        if not (path / MODEL_NAME).is_file():
            raise UsageError(
                f"{path} has no {MODEL_NAME}.", "Give the folder of a run of sohes train that has saved a checkpoint."
            )
        return path / MODEL_NAME
    if not path.is_file():
        raise UsageError(
            f"There is no model {path}.", "Give the folder of a run of sohes train, or its model.safetensors."
        )
    return path


def default_checkpoint(runs: Path = _RUNS) -> Path | None:
    """The folder of the newest phase below `runs` that has a model, or None."""
    folders = (runs / phase for phase in _PHASES)
    return next((folder for folder in folders if (folder / MODEL_NAME).is_file()), None)


def has_model() -> bool:
    """Whether there is a model when none is named: that of a run, or the package's own."""
    return default_checkpoint() is not None or bundled.MODEL.ships


def reason_for(file: Path) -> str:
    """Why `model_file` takes a file when none is named, as a part of a sentence."""
    if file == bundled.MODEL.path:
        return f"it ships with sohes, and {_NO_RUN}"
    return "of the last phase that has a run here"


def model_file(path: str | Path | None) -> Path:
    """The model file that a path means.

    Args:
        path: a model file, the folder of a run, or `bundled` for the model that ships with the package; None for that of the newest
            phase, see `default_checkpoint`, or else the bundled one.

    Raises:
        UsageError: if there is no model at the path, or none is bundled.
        WeightsError: if the bundled one is missing or damaged.
        SohesError: if no path is given and there is none by default.
    """
    if path is None and not has_model():
        raise SohesError(
            f"There is no trained model: {NO_MODEL}.",
            f"Train one ({HOW_TO_TRAIN}), give one with --checkpoint, or use --method explore, which needs none.",
        )
    found = (default_checkpoint() or bundled.BUNDLED) if path is None else path
    return bundled.MODEL.checked("--checkpoint") if str(found) == bundled.BUNDLED else find_model(Path(found))
