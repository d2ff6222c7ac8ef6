"""Backbones made by `sohes pretrain`: found by name, loaded with their description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.vit import bundled
from sohes_cli.vit.tensor_file import read_tensors

__all__ = ["BACKBONE_FORMAT", "BACKBONE_NAME", "find_backbone", "load_vit"]

BACKBONE_NAME = "backbone.safetensors"
BACKBONE_FORMAT = "sohes-backbone"


def find_backbone(source: str, flag: str = "--backbone") -> Path:
    """The backbone file that a name means.

    Args:
        source: `bundled`, a run's folder, or a file.
        flag: what named it, for messages.

    Raises:
        UsageError: if there is none.
        WeightsError: if the bundled one is missing or not the one that belongs to this version.
    """
    if source == bundled.BUNDLED:
        return bundled.BACKBONE.checked(flag)
    path = Path(source)
    if path.is_dir():
        if not (path / BACKBONE_NAME).is_file():
            raise UsageError(
                f"{flag} {source}: the folder has no {BACKBONE_NAME}.", "Give the folder of a run of sohes pretrain."
            )
        return path / BACKBONE_NAME
    if not path.is_file():
        raise UsageError(
            f"{flag} {source}: there is no such file.", "Give the folder of a run of sohes pretrain, or its file."
        )
    return path


def load_vit(path: Path) -> tuple[Any, dict[str, Any]]:
    """Read a backbone file of `sohes pretrain`.

    Returns:
        The timm ViT in fp32, without classifier, for images of any size, and the file's description: `name`, `shape`, `mean`, `std`, ...

    Raises:
        WeightsError: if the file is damaged, of another kind, or does not fit its own description.
    """
    from sohes_cli.vit.build import build_vit

    tensors, description = read_tensors(path, BACKBONE_FORMAT)
    try:
        with torch.device("meta"):  # no random numbers are drawn for parameters that are replaced at once
            vit = build_vit(description["name"], description["shape"])
        vit.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except (KeyError, TypeError, RuntimeError, UsageError) as error:
        raise WeightsError(
            f"{path} does not fit its own description: {error}.", "It is damaged or of another version."
        ) from error
    return vit, description
