"""Model files: the network alone in one safetensors file, with the settings that rebuild it in its header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sohes_cli.errors import SohesError, WeightsError
from sohes_cli.model.config import ModelConfig
from sohes_cli.model.location import find_model
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.settings import from_plain
from sohes_cli.vit.tensor_file import load_module, read_tensors, with_prefix, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["BEST_NAME", "MODEL_FORMAT", "load_model", "save_model"]

BEST_NAME = "best.safetensors"
MODEL_FORMAT = "sohes-model"


def save_model(path: Path, model: EntityModel, description: Mapping[str, Any]) -> None:
    """Write a model file atomically.

    Args:
        description: header, JSON-serializable: `config` (all settings of the run, by group), `image_size`, and more.

    Raises:
        StoreError: if the disk is full or not writable.
    """
    write_tensors(path, with_prefix("model", model.state_dict()), {**description, "format": MODEL_FORMAT})


def load_model(path: Path) -> tuple[EntityModel, dict[str, Any]]:
    """Read a model file.

    Args:
        path: the file, or the run folder of `sohes train`.

    Returns:
        The network on the CPU, in fp32 and eval mode, and the file's header.

    Raises:
        UsageError: if the path does not exist.
        WeightsError: if the file is damaged, of another kind, or does not fit its own settings; nothing is unpickled.
    """
    file = find_model(path)
    tensors, description = read_tensors(file, MODEL_FORMAT)
    try:
        config = from_plain(ModelConfig, description["config"]["model"])
        with torch.device("meta"):  # draws no random numbers for parameters that are replaced
            model = EntityModel(config)
    except (KeyError, TypeError, SohesError) as error:
        raise WeightsError(f"{file} has no valid model settings: {error}.", "It is of another version.") from error
    model.to_empty(device="cpu")
    load_module(model, tensors, "model", file)
    return model.eval(), description
