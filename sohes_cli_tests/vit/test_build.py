"""Plain ViTs of timm: any image size, both kinds of attention, and refused models."""

from __future__ import annotations

import pytest
import torch

from sohes_cli.errors import UsageError
from sohes_cli.vit.build import IMAGENET_MEAN, IMAGENET_STD, build_vit, normalized, use_fused_attention

SHAPE = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("size", [(24, 56), (64, 64)])
def test_a_vit_takes_images_of_any_size(size: tuple[int, int]) -> None:
    vit = build_vit("vit_tiny_patch16_224", SHAPE)
    assert vit.forward_features(torch.zeros(1, 3, *size)).shape == (1, 1 + size[0] * size[1] // 64, 32)


@torch.no_grad()
def test_attention_is_the_same_fused_or_not() -> None:
    torch.manual_seed(0)
    vit, pixels = build_vit("vit_tiny_patch16_224", SHAPE).eval(), torch.randn(2, 3, 32, 32)
    found = []
    for fused in (True, False):
        use_fused_attention(vit, fused)
        assert all(block.attn.fused_attn == fused for block in vit.blocks)
        found.append(vit.forward_features(pixels))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_pixels_of_imagenets_mean_are_zero_and_of_a_deviation_more_one() -> None:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).expand(2, 3, 4, 5) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(normalized(mean), torch.zeros(2, 3, 4, 5))
    torch.testing.assert_close(normalized(mean + std), torch.ones(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("vit_tinny_patch16_224", {}, "vit_tiny_patch16_224"),
        ("resnet50", {}, "resnet50"),
        ("vit_tiny_patch16_224", {"embed_dim": 30, "num_heads": 4}, "embed_dim"),
        ("vit_tiny_patch16_224", {"embed_dim": 10**12}, "embed_dim"),
        ("vit_tiny_patch16_224.augreg_in22k", {}, "augreg_in22k"),
        ("vit_base_patch16_siglip_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "class token"),
        ("vit_small_patch16_18x2_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, "plain"),
    ],
)
def test_what_is_no_such_vit_is_refused(name: str, shape: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_vit(name, shape)
    assert words in str(caught.value)
    assert caught.value.hint
