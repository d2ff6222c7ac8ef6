"""Tensor files: bit-exact round trips, atomic writes, and messages for files that are damaged or do not fit."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sohes_cli.errors import StoreError, WeightsError
from sohes_cli.runs import files
from sohes_cli.vit.tensor_file import (
    load_module,
    read_tensors,
    stored_description,
    with_prefix,
    without_prefix,
    write_tensors,
)

if TYPE_CHECKING:
    from pathlib import Path

KIND = {"format": "kind"}


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
    found, found_description = read_tensors(path, "kind")
    assert found_description == stored_description(path) == description
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensor) and found[name].dtype == dtype for name, tensor in tensors.items())
    with safe_open(path, framework="pt") as file:  # by any other reader too
        assert json.loads(file.metadata()["sohes"]) == description


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(3)}, KIND)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_durably", full)
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
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {"a": torch.zeros(300)}, KIND)
    whole = path.read_bytes()
    contents = {"cut": whole[:-100], "header": b"\xff" * 8 + whole[8:], "garbage": b"no tensors at all", "empty": b""}
    contents["pickle"] = pickle.dumps(_Harmful())
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(WeightsError, match=r"weights\.safetensors cannot be read: ") as caught:
        read_tensors(path, "kind", "Delete it.")
    assert caught.value.hint == "Delete it."
    assert not (tmp_path / "harm").exists()
    assert stored_description(path) == {}


@pytest.mark.parametrize("header", [None, {"sohes": "[]"}, {"sohes": "{}"}, {"sohes": '{"format": "another"}'}])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, header: dict[str, str] | None) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, path, header)
    with pytest.raises(
        WeightsError,
        match=r"a\.safetensors is not a kind file, but 'another'"
        if header == {"sohes": '{"format": "another"}'}
        else "is not a kind",
    ):
        read_tensors(path, "kind")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network.0.weight": torch.zeros(4, 5)}, "0.weight"),
        ({"network.0.weight": None}, "Missing key.*0.weight"),
        ({"network.9.weight": torch.zeros(1)}, "Unexpected key.*9.weight"),
    ],
)
def test_tensors_that_do_not_fit_a_network_are_named(tmp_path: Path, change: dict, words: str) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    tensors = {name: t for name, t in (with_prefix("network", network.state_dict()) | change).items() if t is not None}
    with pytest.raises(WeightsError, match=f"some.file does not fit this model: .*{words}"):
        load_module(network, tensors, "network", tmp_path / "some.file")


def test_prefixes_are_added_and_removed() -> None:
    tensors = {"a.b": torch.zeros(1), "c": torch.ones(2)}
    both = with_prefix("x", tensors) | with_prefix("x.y", {"z": torch.ones(1)}) | {"xa": torch.ones(1)}
    assert both.keys() == {"x.a.b", "x.c", "x.y.z", "xa"}
    assert without_prefix("x", both).keys() == {"a.b", "c", "y.z"}
    assert without_prefix("x.y", both).keys() == {"z"}
