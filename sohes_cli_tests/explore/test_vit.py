"""The ViT backbone against a hooked plain forward pass of timm, and the images and devices that it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sohes_cli.errors import UsageError
from sohes_cli.explore.vit import VIT_THRESHOLDS, VitBackbone
from sohes_cli.runs.files import file_sha256

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# a plain ViT, patch 8, DINOv2 with registers, a distilled one with two prefix tokens, DINOv3, EVA-02 with a split
# projection, a sibling of DINOv3 with one rotary embedding per block
MODELS = {
    "vit_tiny_patch16_224": (48, 80),
    "vit_small_patch8_224.dino": (40, 24),
    "vit_small_patch14_reg4_dinov2": (42, 70),
    "deit_tiny_distilled_patch16_224": (64, 32),
    "vit_small_patch16_dinov3": (48, 80),
    "eva02_tiny_patch14_224": (42, 28),
    "vit_small_patch16_rope_mixed_224": (32, 48),
}
ROUNDING = 2e-5  # fp32, relative to the largest key


def random_images(b: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (b, height, width, 3), dtype=np.uint8)


def randomized(name: str) -> Any:
    """A timm model whose every parameter matters: no zero bias, no layer scale of 1e-5."""
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * 0.05 if parameter.ndim > 1 else 0.5 + 0.2 * noise
    return model


@torch.no_grad()
def hooked_keys(model: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The keys [B, C, h, w] that the last attention computes in timm's own, complete forward pass."""
    caught: list[torch.Tensor] = []
    attention = model.blocks[-1].attn
    attention.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    cfg = model.pretrained_cfg
    pixels = (images / 255.0 - np.array(cfg["mean"])) / np.array(cfg["std"])
    model(torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2))
    tokens = caught[0]
    keys = (
        attention.k_proj(tokens)
        if getattr(attention, "k_proj", None) is not None
        else attention.qkv(tokens).chunk(3, dim=-1)[1]
    )
    patch = model.patch_embed.patch_size[0]
    h, w = images.shape[1] // patch, images.shape[2] // patch
    return keys[:, model.num_prefix_tokens :].reshape(len(images), h, w, -1).permute(0, 3, 1, 2).numpy()


@pytest.fixture(scope="module")
def tiny() -> VitBackbone:
    return VitBackbone("vit_tiny_patch16_224", weights="random")


@pytest.mark.parametrize("name", MODELS)
def test_keys_equal_those_of_the_full_forward_pass(name: str, tmp_path: Path) -> None:
    model = randomized(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = VitBackbone(name, weights=tmp_path / "weights.safetensors")
    images = random_images(2, *MODELS[name])
    keys, expected = backbone.extract(images), hooked_keys(model, images)
    assert (
        keys.shape
        == expected.shape
        == (2, backbone.channels, images.shape[1] // backbone.patch_size, images.shape[2] // backbone.patch_size)
    )
    assert keys.dtype == np.float32
    assert keys.flags.c_contiguous
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(keys, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_key_norm_is_not_applied(tiny: VitBackbone) -> None:
    images = random_images(1, 32, 32)
    before = tiny.extract(images)
    attention = tiny.model.blocks[-1].attn
    attention.k_norm = nn.LayerNorm(64)
    try:
        assert np.array_equal(tiny.extract(images), before)
    finally:
        attention.k_norm = nn.Identity()


class Refuses(nn.Module):
    def forward(self, *_: object, **__: object) -> torch.Tensor:
        raise AssertionError("this module must not run")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_last_block_stops_at_its_keys(name: str) -> None:
    backbone = VitBackbone(name, weights="random")
    side = 2 * backbone.patch_size
    before = backbone.extract(random_images(1, side, side))
    last = backbone.model.blocks[-1]
    for part in ("proj", "attn_drop", "proj_drop", "norm"):
        setattr(last.attn, part, Refuses())
    last.norm2 = last.mlp = backbone.model.norm = backbone.model.fc_norm = Refuses()
    assert np.array_equal(backbone.extract(random_images(1, side, side)), before)


def test_attention_is_never_held_and_no_hook_stays(tiny: VitBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].shape) or fused(*a, **k)
    )
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *_, **__: pytest.fail("attention was computed in the open"))
    tiny.extract(random_images(1, 32, 48))
    assert calls == [(1, 3, 1 + 2 * 3, 64)] * (len(tiny.model.blocks) - 1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.model.modules())


def test_an_image_has_the_same_keys_alone_and_in_a_batch(tiny: VitBackbone) -> None:
    images = random_images(4, 64, 96)
    together = tiny.extract(images)
    alone = np.concatenate([tiny.extract(images[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=ROUNDING * np.abs(alone).max())
    assert np.array_equal(together, tiny.extract(images))
    others = np.concatenate([images[:1], random_images(3, 64, 96, seed=9)])
    assert np.array_equal(tiny.extract(others)[0], together[0])


def test_bf16_changes_little_and_keys_keep_fp32_resolution(tiny: VitBackbone) -> None:
    images = random_images(1, 64, 64)
    backbone = VitBackbone("vit_tiny_patch16_224", weights="random", precision="bf16")
    exact, keys = tiny.extract(images), backbone.extract(images)
    assert keys.dtype == np.float32
    assert not np.array_equal(exact, keys)
    np.testing.assert_allclose(keys, exact, rtol=0, atol=0.03 * np.abs(exact).max())
    assert not np.array_equal(keys, torch.from_numpy(keys).bfloat16().float().numpy())


def test_read_only_and_reversed_images_are_taken(tiny: VitBackbone) -> None:
    images = random_images(1, 32, 32)
    flipped = np.ascontiguousarray(images[:, :, ::-1])
    flipped.flags.writeable = False
    assert np.array_equal(tiny.extract(images[:, :, ::-1]), tiny.extract(flipped))
    assert tiny.extract(images[:0]).shape == (0, 192, 2, 2)


@pytest.mark.parametrize("shape", [(1, 33, 32, 3), (1, 32, 40, 3), (1, 0, 32, 3), (1, 32, 32, 4), (32, 32, 3)])
def test_wrong_shapes_are_refused(tiny: VitBackbone, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        tiny.extract(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        tiny.extract(np.zeros((1, 32, 32, 3), np.float32))  # type: ignore[arg-type]


def test_attributes_and_identity_of_a_file(tmp_path: Path) -> None:
    name, path = "vit_tiny_patch16_224", tmp_path / "weights.pth"
    torch.save(timm.create_model(name, num_classes=0).state_dict(), path)
    backbone = VitBackbone(name, weights=path)
    assert (backbone.name, backbone.patch_size, backbone.channels, backbone.thresholds) == (
        name,
        16,
        192,
        VIT_THRESHOLDS,
    )
    assert backbone.identity == {"name": name, "weights": "file", "sha256": file_sha256(path)}
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize("device", ["no-such-device", "cuda:99"])
def test_devices_that_do_not_exist_are_refused(device: str) -> None:
    with pytest.raises(UsageError, match=device):
        VitBackbone("vit_tiny_patch16_224", weights="random", device=device)
