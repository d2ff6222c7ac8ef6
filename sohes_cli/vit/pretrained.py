"""Backbone files of `sohes pretrain`: found by name, loaded into a timm ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.vit import bundled

__all__ = ["BACKBONE_FORMAT", "BACKBONE_NAME", "find_backbone", "load_vit"]

BACKBONE_NAME = "backbone.safetensors"
BACKBONE_FORMAT = "sohes-backbone"


def find_backbone(source: str, flag: str = "--backbone") -> Path:
    """Find a backbone file.

    Args:
        source: `bundled`, the folder of a run, or a file.
        flag: option that named it, for messages.

    Raises:
        UsageError: if there is no such file.
        WeightsError: if the bundled file is missing or damaged.
    """
    if source == bundled.BUNDLED:
        return bundled.BACKBONE.checked(flag)
    path, hint = Path(source), "Give the folder of a run of sohes pretrain"
    if path.is_dir():
        if not (path / BACKBONE_NAME).is_file():
            raise UsageError(f"{flag} {source}: the folder has no {BACKBONE_NAME}.", f"{hint}.")
        return path / BACKBONE_NAME
    if not path.is_file():
        raise UsageError(f"{flag} {source}: there is no such file.", f"{hint}, or its file.")
    return path


def load_vit(path: Path) -> tuple[Any, dict[str, Any]]:
    """Load a backbone file.

    Returns:
        The timm ViT in fp32, without classifier, for images of any size, and the file's description (`name`, `shape`,
        `mean`, `std`, ...).

    Raises:
        WeightsError: if the file is damaged, of another kind, or inconsistent with its description.
    """
    import torch

    from sohes_cli.vit.build import build_vit
    from sohes_cli.vit.tensor_file import read_tensors

    tensors, description = read_tensors(path, BACKBONE_FORMAT)
    try:
        with torch.device("meta"):  # skips the initialization of parameters that are replaced at once
            vit = build_vit(description["name"], description["shape"])
        vit.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except (KeyError, TypeError, RuntimeError, UsageError) as error:
        message = f"{path} does not fit its own description: {error}."
        raise WeightsError(message, "It is damaged or of another version.") from error
    return vit, description
