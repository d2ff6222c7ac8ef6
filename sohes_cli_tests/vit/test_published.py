"""Published ViTs: weights of the hub, of a file and random ones, and every name or file that does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.vit.published import published_vit
from sohes_cli.vit.weights import state_sha256

if TYPE_CHECKING:
    from pathlib import Path

TINY = "vit_tiny_patch16_224"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_attention_stays_fused_when_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 0)
    assert all(block.attn.fused_attn for block in published_vit(TINY, "random")[0].blocks)


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    _, kind, sha256 = published_vit(TINY, "random")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = published_vit(TINY, "random")
    assert torch.equal(torch.rand(3), expected)
    assert again[1:] == (kind, sha256) == ("random", state_sha256(again[0].state_dict()))


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("vit_base_patch8_224.dinno", "'?vit_base_patch8_224.dino"),
        ("vit_small_patch16_224_dino", "vit_small_patch16_224.dino"),
        ("vit_smal_patch16_dinov3", "vit_small_patch16_dinov3"),
        ("vit_base_patch16_224.no_such_tag", "vit_base_patch16_224"),
        ("zzz", "such as vit_base_patch8_224.dino"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, close: str) -> None:
    with pytest.raises(UsageError, match=close) as caught:
        published_vit(name, "random")
    assert repr(name) in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_r_s16_p8_224", "vit_small_patch16_18x2_224"]
)
def test_other_architectures_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="only ViTs with patch tokens") as caught:
        published_vit(name, "random")
    assert name in caught.value.message


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(timm.create_model(TINY, num_classes=0, depth=2).state_dict(), path)
    with pytest.raises(WeightsError, match=r"120 missing keys: blocks\.2\.norm1\.weight") as caught:
        published_vit(TINY, path)
    assert str(path) in caught.value.message


@pytest.mark.usefixtures("cache")
def test_without_network_and_cache_the_message_says_what_to_do() -> None:
    with pytest.raises(WeightsError, match=r"neither in the local cache .* nor reachable") as caught:
        published_vit(TINY)
    assert TINY in caught.value.message
    assert "--weights FILE" in caught.value.hint
    assert "--backbone color-texture" in caught.value.hint


def test_hub_weights_come_from_the_cache(cache: Path) -> None:
    state = {name: torch.rand_like(t) for name, t in timm.create_model(TINY, num_classes=0).state_dict().items()}
    repository = cache / f"models--{timm.get_pretrained_cfg(TINY).hf_hub_id.replace('/', '--')}"
    cached = repository / "snapshots" / (40 * "0") / "model.safetensors"
    for folder in (cached.parent, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(40 * "0")
    save_file(state, cached)
    assert published_vit(TINY)[1:] == ("hub", state_sha256(state))
    cached.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="could not be loaded"):
        published_vit(TINY)


def test_a_model_that_was_never_trained_has_no_hub_weights() -> None:
    untrained = next(
        n for n in timm.list_models("vit_*", module="vision_transformer") if not timm.is_model_pretrained(n)
    )
    with pytest.raises(WeightsError, match=f"no pretrained weights for {untrained}"):
        published_vit(untrained)
