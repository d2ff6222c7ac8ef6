"""Model files: bit-exact round trips, and an error that names the file for each kind of damage."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from model_cases import SMALL, small_model
from safetensors.torch import load_file, save_file

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.model.files import MODEL_FORMAT, load_model, save_model
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.vit.tensor_file import read_tensors, with_prefix, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.model.config import ModelConfig


def description(config: ModelConfig = SMALL) -> dict[str, Any]:
    return {"config": {"model": asdict(config), "run": {"seed": 3}}, "image_size": 256, "step": 7}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / MODEL_NAME
    save_model(path, small_model(), description())
    return path


@torch.no_grad()
def test_a_model_comes_back_bit_by_bit(saved: Path) -> None:
    model = small_model()
    for path in (saved, saved.parent):  # a file, and the folder of a run
        loaded, found = load_model(path)
        assert found == {**description(), "format": MODEL_FORMAT}
        assert loaded.config == SMALL
        assert not loaded.training
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        for actual, expected in zip(loaded(pixels), model(pixels), strict=True):
            assert torch.equal(actual, expected)


def test_nothing_of_a_loaded_model_is_left_without_memory(saved: Path) -> None:
    loaded, _ = load_model(saved)
    assert all(not tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    kept = {name for name, _ in loaded.named_buffers()}
    assert kept <= loaded.state_dict().keys()  # a buffer that is not saved would hold whatever was in memory
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_kept_in_16_bits_is_loaded_in_32(saved: Path) -> None:
    tensors, found = read_tensors(saved, MODEL_FORMAT)
    halves = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    write_tensors(saved, halves, found)
    loaded, _ = load_model(saved)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, halves[f"model.{name}"].float() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_damaged_files_are_named(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        load_model(saved)
    assert str(saved) in caught.value.message


def test_files_of_other_kinds_are_refused(saved: Path) -> None:
    tensors = load_file(saved)
    save_file(tensors, saved)
    with pytest.raises(WeightsError, match="is not a sohes-model file, but 'of another program'"):
        load_model(saved)
    write_tensors(saved, tensors, {"format": "sohes-backbone"})
    with pytest.raises(WeightsError, match="is not a sohes-model file, but 'sohes-backbone'"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_dim": 64}, r"size mismatch for pixel_decoder\.\S+: .*32.*64"),
        ({"queries": 9}, r"size mismatch for query_decoder\.query_feat\.weight: .*\[7, 32\].*\[9, 32\]"),
        ({"decoder_layers": 5}, r"Missing key.*query_decoder\.transformer_cross_attention_layers\.4\."),
        ({"pixel_layers": 1}, r"Unexpected key.*pixel_decoder\.transformer\.encoder\.layers\.1\."),
    ],
)
def test_a_model_that_does_not_fit_its_settings_is_refused(saved: Path, change: dict[str, Any], words: str) -> None:
    save_model(saved, small_model(), description(replace(SMALL, **change)))
    with pytest.raises(WeightsError, match=words) as caught:
        load_model(saved)
    assert str(saved) in caught.value.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "model"),
        ({"model": {"querys": 3}}, "querys"),
        ({"model": {"queries": "many"}}, "queries"),
        ({"model": {"queries": 0}}, "queries"),
        ({"model": {**asdict(SMALL), "backbone": "resnet50"}}, "resnet50"),
        (["model"], "indices"),
    ],
)
def test_invalid_settings_of_a_file_are_named(saved: Path, config: object, words: str) -> None:
    write_tensors(saved, with_prefix("model", small_model().state_dict()), {"config": config, "format": MODEL_FORMAT})
    with pytest.raises(WeightsError, match=words) as caught:
        load_model(saved)
    assert str(saved) in caught.value.message


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / MODEL_NAME):
        with pytest.raises(UsageError) as caught:
            load_model(path)
        assert str(path) in caught.value.message
        assert caught.value.hint
