"""Names of backbones: the kind of backbone that a name means, and checks that need no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sohes_cli.errors import UsageError, nearest
from sohes_cli.vit.bundled import BUNDLED
from sohes_cli.vit.pretrained import find_backbone
from sohes_cli.vit.timm_names import check_vit_name

if TYPE_CHECKING:
    from sohes_cli.explore.config import FeaturesConfig

__all__ = ["EMBEDDED", "check_backbone", "is_pretrained"]

EMBEDDED = ("color-texture",)
"""Backbones of the package that need no weights."""


def is_pretrained(name: str) -> bool:
    """True for a backbone of `sohes pretrain`: the bundled one, or a path, which no name of timm's is."""
    return name == BUNDLED or "/" in name or name.endswith(".safetensors") or Path(name).is_dir()


def check_backbone(config: FeaturesConfig) -> None:
    """Refuse an unknown backbone, or weights for a backbone that has its own.

    Raises:
        UsageError: if the name means no backbone, or does not go with `config.weights`.
        WeightsError: if the bundled backbone is missing or damaged.
    """
    name, embedded = config.backbone, config.backbone in EMBEDDED
    if config.weights and (embedded or is_pretrained(name)):
        owner, weights = ("a ViT", "no weights") if embedded else ("a ViT of timm", "its own")
        message = f"--weights belongs to {owner}, but --backbone {name} has {weights}."
        raise UsageError(message, "Leave one of them out.")
    if embedded:
        return
    if is_pretrained(name):
        find_backbone(name)
        return
    if nearest(name, (*EMBEDDED, BUNDLED)):
        raise UsageError(f"--backbone {name!r} is unknown.{nearest(name, (*EMBEDDED, BUNDLED))}")
    check_vit_name(name)
