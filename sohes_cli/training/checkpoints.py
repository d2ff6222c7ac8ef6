"""Checkpoints: one safetensors file a step, which appears whole or not at all, the newest few kept.

A file holds tensors by dotted name and, as text in its header, one JSON object: nothing is unpickled, and a file of another kind is told
from the object's `format`. Modules and optimizers are taken apart into such tensors and put together again, exactly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sohes_cli.errors import WeightsError
from sohes_cli.vit.tensor_file import _MISFIT, _below

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["checkpoint_path", "latest_checkpoint", "load_optimizer", "optimizer_tensors", "prune_checkpoints"]

_NAME = re.compile(r"step-(\d{8})\.safetensors")


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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as tensors named `NUMBER.NAME`, the parameters numbered in the order of its groups."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entries in state.items()
        for name, value in entries.items()
    }


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
            raise WeightsError(
                f"{source} does not fit this optimizer: {prefix}.{key} is {list(tensor.shape)}, for {wanted}.", _MISFIT
            )
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(folder: Path) -> list[Path]:
    return (
        sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))
        if folder.is_dir()
        else []
    )
