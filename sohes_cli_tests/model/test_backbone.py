"""Adapted ViT: a start from exactly the loaded ViT, for any patch size, stride and position in the canvas."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from model_cases import SMALL, randomize, small_model
from safetensors.torch import save_file
from torch.nn import functional

from sohes_cli.errors import ConfigError, SohesError, UsageError, WeightsError
from sohes_cli.model.backbone import AdaptedVit, start_weights
from sohes_cli.model.extent import Extent
from sohes_cli.vit.build import build_vit, use_fused_attention
from sohes_cli.vit.tensor_file import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.model.config import ModelConfig

VITS: dict[str, dict[str, Any]] = {
    "patch 8 every 16 pixels": {},
    "patch 16": {"patch_size": 16},
    "patch 16 every 8 pixels": {"patch_size": 16, "token_stride": 8},
    "patch 14 with registers without position": {"backbone": "vit_small_patch14_reg4_dinov2", "patch_size": 0},
    "patch 14 with layer scale": {"backbone": "vit_small_patch14_dinov2", "patch_size": 0},
    "patch 32, a norm before the blocks": {
        "backbone": "vit_base_patch32_clip_224",
        "patch_size": 0,
        "token_stride": 32,
    },
}


def tokens_of(backbone: AdaptedVit, pixels: torch.Tensor, sizes: list[tuple[int, int]] | None = None) -> torch.Tensor:
    """Return the output tokens of the last block."""
    caught = []
    handle = backbone.vit.blocks[-1].register_forward_hook(lambda _module, _arguments, output: caught.append(output))
    backbone(pixels, Extent.of(pixels, sizes))
    handle.remove()
    return caught[0]


def plain_vit(config: ModelConfig, state: dict[str, torch.Tensor]) -> Any:
    vit = build_vit(config.backbone, config.vit_shape).eval()
    vit.norm, vit.fc_norm = torch.nn.Identity(), torch.nn.Identity()
    vit.load_state_dict(state)
    use_fused_attention(vit, False)
    return vit


@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
@pytest.mark.parametrize("changes", VITS.values(), ids=VITS)
@torch.no_grad()
def test_training_starts_from_exactly_the_vit(changes: dict[str, Any], size: tuple[int, int]) -> None:
    model = small_model(**changes)
    backbone = model.backbone
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    disturbed = tokens_of(backbone, pixels)
    for interaction in backbone.interactions:
        interaction.injector.gamma.zero_()
    vit = plain_vit(model.config, backbone.vit.state_dict())
    patch, stride = vit.patch_embed.patch_size[0], model.config.token_stride
    seen = functional.interpolate(
        pixels, tuple(n // stride * patch for n in size), mode="bilinear", align_corners=False
    )
    expected = vit.forward_features(seen)
    torch.testing.assert_close(tokens_of(backbone, pixels), expected, rtol=1e-5, atol=1e-5)
    assert float((disturbed - expected).abs().max()) > 1e-2


@torch.no_grad()
def test_a_new_adapter_leaves_the_vit_as_it_is() -> None:
    torch.manual_seed(0)
    backbone = AdaptedVit(SMALL).eval()
    use_fused_attention(backbone, False)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    vit = plain_vit(SMALL, backbone.vit.state_dict())
    seen = functional.interpolate(pixels, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(tokens_of(backbone, pixels), vit.forward_features(seen), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_padded_image_has_the_vits_own_tokens() -> None:
    backbone = small_model().backbone
    for interaction in backbone.interactions:
        interaction.injector.gamma.zero_()
    pixels = torch.zeros(2, 3, 96, 64)
    pixels[:, :, :64, :32] = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    tokens = tokens_of(backbone, pixels, [(64, 32), (96, 64)])[0]
    vit = plain_vit(SMALL, backbone.vit.state_dict())
    expected = vit.forward_features(functional.interpolate(pixels[:1, :, :64, :32], (32, 16), mode="bilinear"))[0]
    torch.testing.assert_close(tokens[0], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens[1:].view(6, 4, -1)[:4, :2].flatten(0, 1), expected[1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fused_attention_gives_the_same_maps() -> None:
    model = small_model()
    pixels = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for fused in (False, True):
        use_fused_attention(model.backbone, fused)
        assert all(block.attn.fused_attn == fused for block in model.backbone.vit.blocks)
        found.append(model.backbone(pixels, Extent.of(pixels, [(96, 64), (40, 32)])))
    for plain, fused_maps in zip(*found, strict=True):
        torch.testing.assert_close(fused_maps, plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_maps_have_their_strides_and_zeros_beyond_an_image() -> None:
    backbone = small_model().backbone
    pixels = torch.zeros(1, 3, 96, 64)
    maps = backbone(pixels, Extent.of(pixels, [(50, 32)]))
    for stride, level in zip((4, 8, 16, 32), maps, strict=True):
        assert level.shape == (1, 32, 96 // stride, 64 // stride)
        assert level[:, :, : 64 // stride, : 32 // stride].abs().amin((0, 1)).max() > 0
        assert not level[:, :, 64 // stride :].any()
        assert not level[:, :, :, 32 // stride :].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interactions": 3}, "model.interactions must divide the 2 blocks"),
        ({"adapter_heads": 5}, "model.adapter_heads must divide the 16 channels"),
        ({"backbone": "vit_tinny_patch16_224"}, "vit_tiny_patch16_224"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SohesError, match=words) as caught:
        AdaptedVit(replace(SMALL, **changes))
    assert isinstance(caught.value, UsageError | ConfigError)


def full_vit(seed: int) -> Any:
    vit = build_vit(SMALL.backbone, SMALL.vit_shape)
    randomize(vit, seed)
    return vit


@pytest.mark.parametrize("kind", ["a weights file", "a checkpoint of PyTorch", "a run of sohes pretrain"])
def test_a_vit_starts_from_the_named_weights(kind: str, tmp_path: Path) -> None:
    vit = full_vit(1)
    path = tmp_path / "weights.safetensors"
    if kind == "a weights file":
        save_file(vit.state_dict(), path)
    elif kind == "a checkpoint of PyTorch":
        path = tmp_path / "weights.pth"
        torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}}, path)
    else:
        path = tmp_path / "backbone.safetensors"
        write_tensors(path, vit.state_dict(), {"format": "sohes-backbone"})
        path = tmp_path
    backbone = AdaptedVit(SMALL)
    start_weights(backbone, replace(SMALL, weights=str(path)))
    wanted = vit.state_dict()
    assert {name for name in wanted if name not in backbone.vit.state_dict()} == {"norm.weight", "norm.bias"}
    for name, tensor in backbone.vit.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_random_weights_stay() -> None:
    backbone = small_model().backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    start_weights(backbone, SMALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_weights_of_another_vit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(build_vit(SMALL.backbone, SMALL.vit_shape | {"embed_dim": 64}).state_dict(), path)
    with pytest.raises(WeightsError, match="do not fit the backbone"):
        start_weights(AdaptedVit(SMALL), replace(SMALL, weights=str(path)))
