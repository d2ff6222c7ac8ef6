"""Names of timm's models, read from its source files: importing timm, and PyTorch with it, takes seconds."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["VIT_MODULES", "check_vit_name", "unknown_backbone"]

VIT_MODULES = ("deit", "eva", "vision_transformer")
"""Modules of timm whose models can be backbones."""

_MODEL = re.compile(r"@register_model\s+def (\w+)\(")
_TAGGED = re.compile(r"^ +['\"](\w+\.\w+)['\"]: ", re.MULTILINE)


def check_vit_name(name: str) -> None:
    """Refuse the name of a model that timm's sources do not register with a UsageError.

    Tags, and models that are no ViTs, pass: `sohes_cli.vit.published.check_name` knows them. So does every name if the
    sources cannot be read.
    """
    sources = _sources()
    registered = {model for source in sources.values() for model in _MODEL.findall(source)}
    if registered and name.split(".")[0] not in registered:
        vits = "".join(sources[module] for module in VIT_MODULES if module in sources)
        raise unknown_backbone(name, _MODEL.findall(vits) + _TAGGED.findall(vits))


def unknown_backbone(name: str, known: Sequence[str]) -> UsageError:
    """Return the error for a name that is no ViT of timm, with the nearest known ones."""
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    hint = "Name a ViT of timm, such as vit_base_patch8_224.dino, or color-texture."
    return UsageError(f"There is no backbone {name!r}.", f"Did you mean {' or '.join(close)}?" if close else hint)


def _sources() -> dict[str, str]:
    """Return the source text of timm's model files by module name."""
    spec = find_spec("timm")  # finds the package without importing it
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    return {file.stem: file.read_text(encoding="utf-8") for file in files}
