"""Start of a run: a model of an earlier run, or a published checkpoint of the same architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.errors import WeightsError
from sohes_cli.model.files import MODEL_FORMAT
from sohes_cli.model.location import find_model
from sohes_cli.model.public_weights import load_public
from sohes_cli.vit.tensor_file import load_module, read_tensors, stored_description

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["settings_of", "start_from"]


def start_from(model: EntityModel, path: Path) -> str:
    """Fill a model from a model file, the folder of a run, or a public checkpoint, which may lack some tensors.

    Returns:
        Message with the coverage of a public checkpoint; empty for a model of ours, which covers all tensors.

    Raises:
        UsageError: if the file does not exist.
        WeightsError: if the file is damaged or does not fit the model.
    """
    file = find_model(path)
    if file.suffix == ".safetensors" and "format" in stored_description(file):
        tensors, _ = read_tensors(file, MODEL_FORMAT)
        load_module(model, tensors, "model", file)
        return ""
    report = load_public(model, file)
    return f"{file}: {len(report.loaded)} tensors loaded, {len(report.missing)} of the model not found."


def settings_of(path: Path) -> dict[str, Any]:
    """Read the settings of the run behind a model, by group.

    Args:
        path: a model file of `sohes train`, or the folder of a run.

    Raises:
        UsageError: if the file does not exist.
        WeightsError: if the file is damaged or not a model of ours.
    """
    file = find_model(path)
    description = stored_description(file)
    if description.get("format") != MODEL_FORMAT or not isinstance(description.get("config"), dict):
        message = f"{file} is not a model of sohes train, or it is damaged."
        raise WeightsError(message, "Phase 3 goes on from the run of phase 2, or from its model.safetensors.")
    return dict(description["config"])
