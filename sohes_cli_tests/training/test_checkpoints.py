"""Checkpoints: bit-exact round trips, atomic writes, and messages for files that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from sohes_cli.errors import WeightsError
from sohes_cli.training.checkpoints import (
    checkpoint_path,
    latest_checkpoint,
    load_optimizer,
    optimizer_tensors,
    prune_checkpoints,
)
from sohes_cli.vit.tensor_file import load_module, read_tensors, with_prefix, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

KIND = {"format": "kind"}


def trained(seed: int, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Train a small network with one frozen parameter for a few steps of AdamW."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(steps):
        step(network, optimizer)
    return network, optimizer


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.linspace(-1, 1, 6).view(2, 3)).square().sum().backward()
    network[2].bias.grad = None
    optimizer.step()


def test_the_newest_are_kept_and_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_checkpoint(tmp_path) is None
    others = ["step-9.safetensors", "step-00000099.safetensors.tmp", "notes.txt", "step-last.safetensors"]
    for name in others:
        (tmp_path / name).touch()
    for number in (5, 100, 20, 99999999):
        checkpoint_path(tmp_path, number).touch()
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 99999999)
    prune_checkpoints(tmp_path, 2)
    kept = [checkpoint_path(tmp_path, number).name for number in (100, 99999999)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept + others)
    prune_checkpoints(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_network_and_its_optimizer_go_on_as_if_never_stored(tmp_path: Path) -> None:
    network, optimizer = trained(seed=0)
    tensors = with_prefix("network", network.state_dict()) | with_prefix("optimizer", optimizer_tensors(optimizer))
    write_tensors(tmp_path / "a.safetensors", tensors, KIND)
    read, _ = read_tensors(tmp_path / "a.safetensors", "kind")
    other, other_optimizer = trained(seed=1)
    load_module(other, read, "network", tmp_path)
    load_optimizer(other_optimizer, read, "optimizer", tmp_path)
    for _ in range(3):
        step(network, optimizer)
        step(other, other_optimizer)
    assert all(a.equal(b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert optimizer_tensors(optimizer).keys() == optimizer_tensors(other_optimizer).keys()
    # a parameter without a gradient has no moments
    assert not any(name.startswith("3.") for name in optimizer_tensors(optimizer))


@pytest.mark.parametrize("name", ["0.exp_avg", "4.exp_avg", "x.exp_avg", "-1.exp_avg", "exp_avg"])
def test_tensors_that_do_not_fit_an_optimizer_are_named(tmp_path: Path, name: str) -> None:
    _, optimizer = trained(seed=0)
    with pytest.raises(WeightsError, match=rf"some\.file does not fit this optimizer: optimizer\.{name} is \[5\]"):
        load_optimizer(optimizer, {f"optimizer.{name}": torch.zeros(5)}, "optimizer", tmp_path / "some.file")
