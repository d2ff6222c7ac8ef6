"""Checkpoints: one safetensors file per saved step, written atomically, the newest few kept.

A file holds the tensors of modules and optimizer by dotted name and one JSON object in its header: nothing is
unpickled, and `format` in that object tells kinds of files apart. Loading restores the state exactly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sohes_cli.errors import WeightsError
from sohes_cli.vit.tensor_file import MISFIT, load_module, read_tensors, with_prefix, without_prefix, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

__all__ = [
    "RESTART_HINT",
    "checkpoint_path",
    "latest_checkpoint",
    "load_checkpoint",
    "load_optimizer",
    "optimizer_tensors",
    "prune_checkpoints",
    "save_checkpoint",
]

RESTART_HINT = (  # for a run that diverged
    "Begin anew with a lower --learning-rate or optimizer.gradient_clip, or optimizer.precision=fp32; "
    "checkpoints are kept."
)

_NAME = re.compile(r"step-(\d{8})\.safetensors")
_HINT = "Delete it to continue from an older checkpoint, if there is one."


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.safetensors"


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint of a folder; None without one."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in _checkpoints(folder)[:-keep]:
        path.unlink(missing_ok=True)


def save_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, description: Mapping[str, Any]
) -> None:
    """Write modules by the prefix of their tensors, an optimizer, and a description with `format`, `step` and `steps`.

    Raises:
        StoreError: if the disk is full or not writable.
    """
    tensors = with_prefix("optimizer", optimizer_tensors(optimizer))
    for name, module in modules.items():
        tensors |= with_prefix(name, module.state_dict())
    write_tensors(path, tensors, description)


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, checkpoint_format: str, steps: int
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote in a run of `steps` steps, and return the description.

    Raises:
        WeightsError: if the file is damaged, or of another format, run or shape.
    """
    tensors, description = read_tensors(path, checkpoint_format, _HINT)
    step = description.get("step")
    if not isinstance(step, int) or description.get("steps") != steps:
        message = f"{path} is after step {step} of {description.get('steps')}, but this run has {steps} steps."
        raise WeightsError(message, _HINT)
    for name, module in modules.items():
        load_module(module, tensors, name, path)
    load_optimizer(optimizer, tensors, "optimizer", path)
    return description


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten the state of an optimizer into tensors named `NUMBER.NAME`, numbered in the order of its groups."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, entries in state.items() for name, value in entries.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str, source: Path) -> None:
    """Fill an optimizer of the same parameters from the tensors whose names begin with `prefix` and a dot.

    Raises:
        WeightsError: if a tensor belongs to no parameter, or differs in shape from its parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in without_prefix(prefix, tensors).items():
        number, _, name = key.partition(".")
        known = number.isdecimal() and int(number) < len(parameters)
        if not known or tensor.shape not in ((), parameters[int(number)].shape):
            expected = list(parameters[int(number)].shape) if known else "nothing"
            message = f"{source} does not fit this optimizer: {prefix}.{key} is {list(tensor.shape)}, for {expected}."
            raise WeightsError(message, MISFIT)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))
