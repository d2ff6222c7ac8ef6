"""Tensors and a JSON description in one safetensors file."""

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

__all__ = ["load_module", "read_tensors", "stored_description", "with_prefix", "write_tensors"]

_HEADER = "sohes"
_SHOWN_LINES = 3
_MISFIT = "It was written with other settings or by another version."


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object into one safetensors file, atomically.

    Raises:
        StoreError: if the disk is full or not writable; a file that was there before stays.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, [save(plain, {_HEADER: json.dumps(description, sort_keys=True)})])


def read_tensors(
    path: Path, wanted_format: str, hint: str = "It is missing or damaged: make or copy it anew."
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, on the CPU.

    Args:
        path: the file.
        wanted_format: what its `format` must be.
        hint: what to do about a file that cannot be read.

    Raises:
        WeightsError: if it cannot be read, is damaged, or is of another kind.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            description = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.", hint) from error
    if not isinstance(description, dict) or description.get("format") != wanted_format:
        found = (
            description.get("format", "of another program") if isinstance(description, dict) else "of another program"
        )
        raise WeightsError(
            f"{path} is not a {wanted_format} file, but {found!r}.", f"Give a file of the kind {wanted_format}."
        )
    return tensors, description


def stored_description(path: Path) -> dict[str, Any]:
    """The JSON object of a file that `write_tensors` wrote; empty for a file of another program, or one that cannot be read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            description = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under names that begin with `prefix` and a dot."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, source: Path) -> None:
    """Fill a module from the tensors whose names begin with `prefix` and a dot.

    Raises:
        WeightsError: if a tensor is missing or left over, or has another shape.
    """
    try:
        module.load_state_dict(_below(prefix, tensors))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1 : 1 + _SHOWN_LINES]]
        raise WeightsError(f"{source} does not fit this model: {' '.join(lines)}", _MISFIT) from error


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix` and a dot, under the rest of their names."""
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }
