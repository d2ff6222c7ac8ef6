"""Backbone files of `sohes pretrain`: found by folder or file, loaded in full precision, damaged ones named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.vit.build import build_vit
from sohes_cli.vit.pretrained import BACKBONE_FORMAT, BACKBONE_NAME, find_backbone, load_vit
from sohes_cli.vit.tensor_file import write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def description(**changes: object) -> dict[str, object]:
    parts = {
        "format": BACKBONE_FORMAT,
        "name": "vit_tiny_patch16_224",
        "shape": SHAPE,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    return parts | changes


def test_a_backbone_is_found_by_folder_and_by_file(tmp_path: Path) -> None:
    (tmp_path / BACKBONE_NAME).touch()
    assert find_backbone(str(tmp_path)) == find_backbone(str(tmp_path / BACKBONE_NAME)) == tmp_path / BACKBONE_NAME


def test_a_missing_path_and_a_folder_of_another_kind_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--weights .*there is no such file") as caught:
        find_backbone(str(tmp_path / "none.safetensors"), "--weights")
    assert "sohes pretrain" in caught.value.hint
    with pytest.raises(UsageError, match=f"has no {BACKBONE_NAME}"):
        find_backbone(str(tmp_path))


def test_half_precision_weights_are_loaded_in_full_precision(tmp_path: Path) -> None:
    torch.manual_seed(3)
    half = {name: tensor.half() for name, tensor in build_vit("vit_tiny_patch16_224", SHAPE).state_dict().items()}
    write_tensors(tmp_path / "half.safetensors", half, description())
    vit, found = load_vit(tmp_path / "half.safetensors")
    assert found == description()
    assert all(p.dtype == torch.float32 for p in vit.parameters())
    assert all(torch.equal(p, half[name].float()) for name, p in vit.state_dict().items())


def foreign(path: Path) -> None:
    save_file({"x": torch.zeros(2)}, path)


def of_another_format(path: Path) -> None:
    write_tensors(path, {"x": torch.zeros(2)}, {"format": "sohes-pretrain-checkpoint"})


def cut_off(path: Path) -> None:
    write_tensors(path, {"x": torch.zeros(2000)}, description())
    path.write_bytes(path.read_bytes()[:-100])


def text(path: Path) -> None:
    path.write_text("not weights")


def of_another_shape(path: Path) -> None:
    write_tensors(
        path, build_vit("vit_tiny_patch16_224", SHAPE).state_dict(), description(shape=SHAPE | {"embed_dim": 96})
    )


def without_a_name(path: Path) -> None:
    tensors = build_vit("vit_tiny_patch16_224", SHAPE).state_dict()
    save_file(tensors, path, {"sohes": json.dumps({"format": BACKBONE_FORMAT, "shape": SHAPE})})


@pytest.mark.parametrize("write", [foreign, of_another_format, cut_off, text, of_another_shape, without_a_name])
def test_a_file_that_is_no_such_backbone_is_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "some.safetensors"
    write(path)
    with pytest.raises(WeightsError, match=r"some\.safetensors") as caught:
        load_vit(path)
    assert caught.value.hint
