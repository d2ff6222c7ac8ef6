"""Safetensors files with a JSON description: the format of our backbones, models and checkpoints.

The description is stored under the key `sohes` of the file's metadata and holds at least `format`, the kind of the
file. Within a file, the tensors of a module share a prefix and a dot.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sohes_cli.errors import WeightsError
from sohes_cli.runs.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = [
    "MISFIT",
    "load_module",
    "read_tensors",
    "stored_description",
    "with_prefix",
    "without_prefix",
    "write_tensors",
]

MISFIT = "It was written with other settings or by another version."
"""Hint for tensors that do not fit a module or an optimizer."""

_HEADER = "sohes"
_SHOWN_LINES = 3


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object into one file, atomically.

    Raises:
        StoreError: if the disk is full or not writable; an older file is kept.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, [save(plain, {_HEADER: json.dumps(description, sort_keys=True)})])


def read_tensors(
    path: Path, wanted_format: str, hint: str = "It is missing or damaged: make or copy it anew."
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, on the CPU, and the description of a file.

    Args:
        path: file written by `write_tensors`.
        wanted_format: required `format` of the description.
        hint: remedy for an unreadable file.

    Raises:
        WeightsError: if the file cannot be read, is damaged, or is of another kind.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            description = _description(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.", hint) from error
    if description.get("format") != wanted_format:
        message = f"{path} is not a {wanted_format} file, but {description.get('format', 'of another program')!r}."
        raise WeightsError(message, f"Give a file of the kind {wanted_format}.")
    return tensors, description


def stored_description(path: Path) -> dict[str, Any]:
    """Read the description of a file; empty for unreadable files and those of other programs."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return _description(file)
    except (OSError, SafetensorError, ValueError):
        return {}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prepend a prefix and a dot to all names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the names with a prefix and a dot, and remove both."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, source: Path) -> None:
    """Load the tensors with a prefix into a module.

    Raises:
        WeightsError: if names or shapes differ.
    """
    try:
        module.load_state_dict(without_prefix(prefix, tensors))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1 : 1 + _SHOWN_LINES]]
        raise WeightsError(f"{source} does not fit this model: {' '.join(lines)}", MISFIT) from error


def _description(file: Any) -> dict[str, Any]:
    description = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
    return description if isinstance(description, dict) else {}
