"""Checkpoints come back bit for bit, appear whole or not at all, and say what is wrong with one that does not fit."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from torch import nn

from sohes_cli.errors import StoreError, WeightsError
from sohes_cli.labels import store
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
    """A small network after a few steps of AdamW, one of its parameters frozen."""
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_tensors_and_description_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "new" / "a.safetensors"
    tensors = {
        "a": torch.arange(12).view(3, 4).to(dtype).T,
        "one.two": torch.ones((), dtype=dtype),
        "none": torch.zeros(0, 2, dtype=dtype),
    }
    description = KIND | {"name": "flügel", "shape": [1, 2], "nested": {"x": None}}
    write_tensors(path, tensors, description)
    found, told = read_tensors(path, "kind")
    assert told == description
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) and found[name].dtype == dtype for name, tensor in tensors.items())
    with safe_open(path, framework="pt") as file:  # by any other reader, too
        assert json.loads(file.metadata()["sohes"]) == description


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, KIND)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_durably", full)
    with pytest.raises(StoreError, match=r"a\.safetensors cannot be written: No space left"):
        write_tensors(path, {"a": torch.ones(3)}, KIND)
    assert read_tensors(path, "kind")[0]["a"].equal(torch.zeros(3))
    assert os.listdir(tmp_path) == ["a.safetensors"]  # noqa: PTH208 (names)


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("damage", ["cut", "header", "garbage", "empty", "pickle", "folder", "missing"])
def test_a_damaged_file_is_named_and_nothing_is_unpickled(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-00000007.safetensors"
    write_tensors(path, {"a": torch.zeros(300)}, KIND)
    whole = path.read_bytes()
    contents = {"cut": whole[:-100], "header": b"\xff" * 8 + whole[8:], "garbage": b"no tensors at all", "empty": b""}
    contents["pickle"] = pickle.dumps(_Harmful())
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(WeightsError, match=r"step-00000007\.safetensors cannot be read: ") as caught:
        read_tensors(path, "kind", "Delete it.")
    assert caught.value.hint == "Delete it."
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("header", [None, {"sohes": "[]"}, {"sohes": "{}"}, {"sohes": '{"format": "another"}'}])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, header: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, path, header)
    with pytest.raises(
        WeightsError,
        match=r"a\.safetensors is not a kind file, but 'another'"
        if header == {"sohes": '{"format": "another"}'}
        else "is not a kind",
    ):
        read_tensors(path, "kind")


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
    assert not any(
        name.startswith("3.") for name in optimizer_tensors(optimizer)
    )  # what never had a gradient has no moments


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network.0.weight": torch.zeros(4, 5)}, "0.weight"),
        ({"network.0.weight": None}, "Missing key.*0.weight"),
        ({"network.9.weight": torch.zeros(1)}, "Unexpected key.*9.weight"),
    ],
)
def test_tensors_that_do_not_fit_a_network_are_named(tmp_path: Path, change: dict, words: str) -> None:
    network, _ = trained(seed=0, steps=0)
    tensors = {name: t for name, t in (with_prefix("network", network.state_dict()) | change).items() if t is not None}
    with pytest.raises(WeightsError, match=f"some.file does not fit this model: .*{words}"):
        load_module(network, tensors, "network", tmp_path / "some.file")


@pytest.mark.parametrize("name", ["0.exp_avg", "4.exp_avg", "x.exp_avg", "-1.exp_avg", "exp_avg"])
def test_tensors_that_do_not_fit_an_optimizer_are_named(tmp_path: Path, name: str) -> None:
    _, optimizer = trained(seed=0)
    with pytest.raises(WeightsError, match=rf"some\.file does not fit this optimizer: optimizer\.{name} is \[5\]"):
        load_optimizer(optimizer, {f"optimizer.{name}": torch.zeros(5)}, "optimizer", tmp_path / "some.file")
