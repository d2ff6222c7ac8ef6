"""Checkpoints: one safetensors file a step, which appears whole or not at all, the newest few kept.

A file holds tensors by dotted name and, as text in its header, one JSON object: nothing is unpickled, and a file of another kind is told
from the object's `format`. Modules and optimizers are taken apart into such tensors and put together again, exactly.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sohes_cli.errors import WeightsError
from sohes_cli.labels.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "checkpoint_path",
    "latest_checkpoint",
    "load_module",
    "load_optimizer",
    "optimizer_tensors",
    "prune_checkpoints",
    "read_tensors",
    "stored_description",
    "with_prefix",
    "write_tensors",
]

_NAME = re.compile(r"step-(\d{8})\.safetensors")
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
        found = description.get("format", "of another program") if isinstance(description, dict) else "of another program"
        raise WeightsError(f"{path} is not a {wanted_format} file, but {found!r}.", f"Give a file of the kind {wanted_format}.")
    return tensors, description


def stored_description(path: Path) -> dict[str, Any]:
    """The JSON object of a file that `write_tensors` wrote; empty for a file of another program, or one that cannot be read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            description = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step-{step:08d}.safetensors"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, or None if it has none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in _checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)


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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as tensors named `NUMBER.NAME`, the parameters numbered in the order of its groups."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, entries in state.items() for name, value in entries.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str, source: Path) -> None:
    """Fill an optimizer of the same parameters from the tensors whose names begin with `prefix` and a dot.

    Raises:
        WeightsError: if one belongs to no parameter, or has another shape than its parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below(prefix, tensors).items():
        number, _, name = key.partition(".")
        known = number.isdecimal() and int(number) < len(parameters)
        if not known or tensor.shape not in ((), parameters[int(number)].shape):
            wanted = list(parameters[int(number)].shape) if known else "nothing"
            raise WeightsError(f"{source} does not fit this optimizer: {prefix}.{key} is {list(tensor.shape)}, for {wanted}.", _MISFIT)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix` and a dot, under the rest of their names."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)) if folder.is_dir() else []
