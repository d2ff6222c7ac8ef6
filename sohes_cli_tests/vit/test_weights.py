"""Weights files: the published layouts load, the hostile, the damaged and the unfit are refused by name."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.runs.files import file_sha256
from sohes_cli.vit.weights import load_into, load_state_dict, state_sha256

State = dict[str, Tensor]


def small_model(name: str = "vit_tiny_patch16_224", seed: int = 0, **kwargs: Any) -> Any:
    """A timm model cut to two blocks, no parameter of it constant."""
    model = timm.create_model(name, num_classes=0, depth=2, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + k: v for k, v in state.items()}


def dino_training_checkpoint(teacher: State, student: State) -> dict[str, object]:
    head = {"mlp.0.weight": torch.ones(2, 2), "last_layer.weight_g": torch.ones(2, 1)}
    return {
        "student": prefixed(student, "module.backbone.") | prefixed(head, "module.head."),
        "teacher": prefixed(teacher, "backbone.") | prefixed(head, "head."),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": Namespace(arch="vit_small", lr=5e-4),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


@pytest.mark.parametrize(
    "layout",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"state_dict": prefixed(s, "module.")}},
        lambda s: prefixed(s, "module.backbone."),
        lambda s: prefixed(s, "backbone.") | {"decode_head.weight": torch.ones(1)},
        lambda s: prefixed(s, "encoder."),
        lambda s: s | {"head.mlp.0.weight": torch.ones(2), "head.last_layer.weight_v": torch.ones(2)},
        lambda s: {"student": prefixed(s, "module.backbone.")},
        lambda s: dino_training_checkpoint(s, {k: v + 1 for k, v in s.items()}),
    ],
    ids=["flat", "state_dict", "nested", "prefixes", "backbone", "encoder", "projection-head", "student", "dino-full"],
)
def test_containers_and_prefixes(layout: Any, tmp_path: Path) -> None:
    state = small_model().state_dict()
    torch.save(layout(state), tmp_path / "checkpoint.pth")
    assert_same(load_state_dict(tmp_path / "checkpoint.pth"), state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".PTH"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    state, path = small_model().state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(prefixed(state, "backbone."), path)
    else:
        torch.save(state, path)
    assert_same(load_state_dict(path), state)


def test_loading_leaves_the_given_state_as_it_is() -> None:
    state = small_model("vit_small_patch14_reg4_dinov2", img_size=56).state_dict()
    given = dinov2_layout(state)
    kept = dict(given)
    load_into(small_model("vit_small_patch14_reg4_dinov2", seed=1, img_size=56), given, "test")
    assert_same(given, kept)


def dinov2_layout(state: State) -> State:
    """Layout of facebookresearch/dinov2: register_tokens, a mask token, a position embedding of the class token."""
    given = {k.replace("reg_token", "register_tokens"): v for k, v in state.items()}
    class_position = torch.full_like(state["cls_token"], 0.5)
    given["cls_token"] = state["cls_token"] - class_position
    given["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    return given | {"mask_token": torch.zeros(1, 384)}


def dinov3_layout(state: State) -> State:
    """Layout of facebookresearch/dinov3: storage_tokens, ls1.gamma, rope periods, a masked bias of zeros."""
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    given = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        given[key] = value
    for i in range(2):
        given |= {f"blocks.{i}.attn.qkv.bias": torch.zeros(1152), f"blocks.{i}.attn.qkv.bias_mask": torch.zeros(1152)}
    return given | {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vit_small_patch16_224.dino", lambda s: s | {"head.weight": torch.ones(2), "head_dist.bias": torch.ones(2)}),
        ("vit_small_patch14_dinov2", lambda s: s | {"mask_token": torch.zeros(1, 384)}),
        ("vit_small_patch14_reg4_dinov2", dinov2_layout),
        ("vit_small_patch16_dinov3", dinov3_layout),
        ("vit_small_patch16_dinov3", lambda s: s),
        ("eva02_tiny_patch14_224", lambda s: s),
    ],
    ids=["dino", "dinov2", "dinov2-registers", "dinov3", "dinov3-timm", "eva02"],
)
def test_published_layouts_load(name: str, layout: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = small_model(name).state_dict()
    model = small_model(name, seed=1)
    load_into(model, layout(state), "test")
    loaded = model.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=1e-6, msg=key)
    assert capsys.readouterr().out == ""


def test_position_embeddings_of_another_grid_are_interpolated() -> None:
    small, large = small_model(img_size=64), small_model(seed=1, img_size=128)
    small.pos_embed.data[:, 1:] = 3.0
    load_into(large, small.state_dict(), "test")
    assert large.pos_embed.shape == (1, 1 + 8 * 8, 192)
    torch.testing.assert_close(large.pos_embed[:, 1:], torch.full((1, 64, 192), 3.0))
    assert torch.equal(large.pos_embed[:, :1], small.pos_embed[:, :1])


def test_a_mismatch_names_keys_counts_and_shapes() -> None:
    state = small_model().state_dict()
    given = {k: v for k, v in state.items() if not k.startswith("blocks.1.")} | {"norm.weight": torch.ones(7)}
    given |= {f"strange.{i}": torch.ones(1) for i in range(3)}
    with pytest.raises(WeightsError) as caught:
        load_into(small_model(), given, "some.pth")
    message = caught.value.message
    assert "some.pth" in message
    assert "vit_tiny_patch16_224" in message
    assert "12 missing keys: blocks.1.norm1.weight, blocks.1.norm1.bias, " in message
    assert message.count("blocks.1.") == 5
    assert "3 unexpected keys: strange.0, strange.1, strange.2;" in message
    assert "1 shape mismatches: norm.weight is [7] instead of [192]" in message


def test_a_mismatch_leaves_the_model_untouched() -> None:
    model = small_model()
    before = state_sha256(model.state_dict())
    other = small_model(seed=1).state_dict()
    del other["norm.bias"]
    with pytest.raises(WeightsError, match=r"1 missing keys: norm\.bias\."):
        load_into(model, other, "test")
    assert state_sha256(model.state_dict()) == before


def test_another_patch_size_is_refused_not_rescaled() -> None:
    with pytest.raises(
        WeightsError, match=r"patch_embed.proj.weight is \[384, 3, 16, 16\] instead of \[384, 3, 8, 8\]"
    ):
        load_into(
            small_model("vit_small_patch8_224.dino"), small_model("vit_small_patch16_224.dino").state_dict(), "test"
        )


def test_a_position_embedding_that_is_no_grid_is_refused() -> None:
    state = small_model().state_dict()
    with pytest.raises(WeightsError, match=r"pos_embed is \[1, 8, 192\] instead of \[1, 197, 192\]"):
        load_into(small_model(), state | {"pos_embed": torch.ones(1, 1 + 7, 192)}, "test")
    with pytest.raises(WeightsError, match="1 failed conversions: RuntimeError"):
        load_into(small_model(), state | {"pos_embed": torch.ones(1, 1 + 50, 192)}, "test")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))], ids=["torch", "pickle"]
)
def test_pickled_code_is_refused_and_not_run(save: Any, tmp_path: Path) -> None:
    path, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    save({"state_dict": small_model().state_dict(), "args": Hostile(marker)}, path)
    with pytest.raises(WeightsError, match=r"hostile\.pth") as caught:
        load_state_dict(path)
    assert not marker.exists()
    assert "safetensors" in caught.value.hint
    assert "pickled code" in caught.value.hint
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert marker.exists()  # the file was indeed loaded with a bomb


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(small_model(), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt"):
        load_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -100])
def test_damaged_files_are_named(suffix: str, keep: int, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = small_model().state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError) as caught:
        load_state_dict(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert ".safetensors" in caught.value.hint


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"teacher": {"epoch": 1}}])
def test_files_without_named_tensors_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_state_dict(tmp_path / "empty.pth")


def test_missing_files_folders_and_other_formats_are_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"PK")
    for path in (tmp_path / "absent.pth", tmp_path, tmp_path / "weights.npz"):
        with pytest.raises(UsageError, match="weights file") as caught:
            load_state_dict(path)
        assert str(path) in caught.value.message


def test_state_hash_ignores_order_and_nothing_else() -> None:
    state = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor(1),
        "c": torch.ones(3, dtype=torch.bfloat16),
        "d": torch.ones(0),
    }
    digest = state_sha256(state)
    assert state_sha256(dict(reversed(state.items()))) == digest
    assert state_sha256(state | {"a": state["a"].t().contiguous().t()}) == digest
    changes: list[State] = [
        {"a": state["a"].reshape(3, 2)},
        {"a": state["a"].view(torch.int32)},
        {"a": state["a"] + torch.eye(2, 3) * 1e-6},
        {"d": torch.ones(0, 2)},
        {"e": torch.ones(1)},
    ]
    assert len({digest, *(state_sha256(state | change) for change in changes)}) == 1 + len(changes)
    assert state_sha256({"a": state["b"], "b": state["a"]}) != state_sha256({"a": state["a"], "b": state["b"]})


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
