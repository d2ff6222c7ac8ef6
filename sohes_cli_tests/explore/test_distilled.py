"""Backbones of `sohes pretrain` as feature extractors: what their features are, and which files are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from skimage import data

from sohes_cli.errors import UsageError
from sohes_cli.explore.color_texture import ColorTexture
from sohes_cli.explore.config import FeaturesConfig
from sohes_cli.explore.distilled import DistilledVit, _centered
from sohes_cli.explore.features import build_backbone, patch_features
from sohes_cli.vit.build import build_vit
from sohes_cli.vit.pretrained import BACKBONE_FORMAT, BACKBONE_NAME, load_vit
from sohes_cli.vit.tensor_file import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
SIZE = (48, 72)


def description(**changes: object) -> dict[str, object]:
    return {
        "format": BACKBONE_FORMAT,
        "name": "vit_tiny_patch16_224",
        "shape": SHAPE,
        "mean": MEAN,
        "std": STD,
    } | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: a small ViT with random weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(3)
    write_tensors(folder / BACKBONE_NAME, build_vit("vit_tiny_patch16_224", SHAPE).state_dict(), description())
    return folder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two crops of a photograph, uint8 [2, 48, 72, 3]."""
    photo = data.astronaut()
    return np.stack([photo[:48, 200:272], photo[100:148, 180:252]])


def test_the_features_join_centered_tokens_and_histograms(run: Path, images: np.ndarray) -> None:
    backbone = DistilledVit(str(run), color_share=0.25, vit_scale=1.0)
    features = backbone.extract(images)
    assert features.shape == (2, backbone.channels, SIZE[0] // 4, SIZE[1] // 4)
    assert features.dtype == np.float32
    vit, _ = load_vit(run / BACKBONE_NAME)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    with torch.no_grad():
        tokens = vit.eval().forward_features(pixels)[:, 1:]
    tokens = torch.nn.functional.normalize(tokens - tokens.mean(1, keepdim=True), dim=-1).mT.reshape(2, 48, 6, 9)
    # the center of a patch of 4 pixels is a quarter of the way between the centers of patches of 8
    # in a corner it is the corner's token
    np.testing.assert_allclose(features[:, :48, 0, 0], tokens[:, :, 0, 0].numpy() * 0.75**0.5, atol=1e-4)
    mixed = 0.75 * tokens[..., 0, 3] + 0.25 * tokens[..., 0, 4]
    np.testing.assert_allclose(features[:, :48, 0, 7], mixed.numpy() * 0.75**0.5, atol=1e-4)
    np.testing.assert_allclose(features[:, 48:], ColorTexture().extract(images) * 0.25**0.5, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_product_of_two_patches_is_the_weighted_mean_of_both_parts(
    run: Path, images: np.ndarray, share: float
) -> None:
    features, deep, color = (
        DistilledVit(str(run), color_share=s).extract(images)[0].reshape(-1, 216) for s in (share, 0.0, 1.0)
    )
    assert np.linalg.norm(features, axis=0).max() <= 1 + 1e-3
    np.testing.assert_allclose(features.T @ features, (1 - share) * deep.T @ deep + share * color.T @ color, atol=1e-4)


def test_tokens_that_hardly_differ_from_the_mean_count_little() -> None:
    tokens = torch.zeros(1, 4, 16)
    tokens[0, 0, 0], tokens[0, 1, 0], tokens[0, 2, 1], tokens[0, 3, 1] = 4, -4, 0.1, -0.1
    centered = _centered(tokens)[0]
    np.testing.assert_allclose(
        centered.norm(dim=-1), [1, 1, 0.01, 0.01], rtol=1e-5
    )  # a quarter of sqrt(16) is the full length
    assert torch.equal(_centered(torch.ones(1, 3, 16)), torch.zeros(1, 3, 16))


def test_an_image_alone_and_in_a_batch_is_described_alike(run: Path, images: np.ndarray) -> None:
    backbone = DistilledVit(str(run))
    np.testing.assert_allclose(backbone.extract(images)[1], backbone.extract(images[1:])[0], atol=1e-5)


def test_the_vit_sees_the_image_at_its_own_scale(run: Path) -> None:
    backbone = DistilledVit(str(run), vit_scale=0.5)
    seen = []
    backbone.vit.patch_embed.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    patch_features(backbone, data.astronaut()[:300, :400], 200)
    assert seen == [(1, 3, 88, 112)]  # 172 x 232 pixels of histograms, halved and rounded to patches of 8


@pytest.mark.parametrize("name", ["folder", "file"])
def test_a_folder_and_its_file_are_the_same_backbone(run: Path, name: str) -> None:
    path = run if name == "folder" else run / BACKBONE_NAME
    backbone = build_backbone(FeaturesConfig(backbone=str(path)), "cpu")
    assert isinstance(backbone, DistilledVit)
    assert backbone.name == "pretrained"
    assert backbone.identity["sha256"] == DistilledVit(str(run)).identity["sha256"]


def test_weights_beside_it_are_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="--weights belongs to a ViT of timm"):
        build_backbone(FeaturesConfig(backbone=str(run), weights="x.pth"), "cpu")


def test_an_unknown_device_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="abacus"):
        build_backbone(FeaturesConfig(backbone=str(run)), "abacus")
