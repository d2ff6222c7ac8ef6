"""From pixels to features of units: sizes given to the backbone, sums over units, and the choice of a backbone."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.explore.color_texture import ColorTexture
from sohes_cli.explore.config import FeaturesConfig
from sohes_cli.explore.features import EMBEDDED, build_backbone, patch_features, unit_sums


class MeanColor:
    """A backbone whose features are the mean color of each patch, and that remembers what it was given."""

    name, thresholds, precision, identity = "mean-color", (0.5,), "fp32", {}

    def __init__(self, patch_size=8):
        self.patch_size = patch_size
        self.seen = None

    def extract(self, images):
        self.seen = images
        b, height, width, _ = images.shape
        p = self.patch_size
        return images.reshape(b, height // p, p, width // p, p, 3).mean((2, 4)).transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize("patch_size", [4, 8, 14, 16])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (321, 481), (100, 99), (30, 900), (1000, 40), (64, 64)])
def test_the_backbone_sees_whole_patches_of_the_wanted_area_and_aspect(patch_size, height, width):
    backbone = MeanColor(patch_size)
    features = patch_features(backbone, np.zeros((height, width, 3), np.uint8), 224)
    _, rows, columns = features.shape
    assert backbone.seen.shape == (1, rows * patch_size, columns * patch_size, 3)
    assert backbone.seen.dtype == np.uint8
    scale = 224 / (height * width) ** 0.5
    assert abs(rows - height * scale / patch_size) <= 0.5
    assert abs(columns - width * scale / patch_size) <= 0.5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (2, 3), (5000, 1)])
def test_the_smallest_images_have_at_least_one_patch(height, width):
    features = patch_features(MeanColor(16), np.full((height, width, 3), 9, np.uint8), 32)
    assert min(features.shape) >= 1
    np.testing.assert_allclose(features, 9)


@pytest.mark.parametrize(("height", "width"), [(300, 420), (30, 42)])
def test_features_lie_where_their_pixels_do(height, width):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 3, :, 0] = 200
    pixels[:, : width // 2, 1] = 100
    features = patch_features(MeanColor(), pixels, 96)
    _, rows, columns = features.shape
    assert features[0, 0].min() > 150
    assert features[0, rows // 2 :].max() < 5
    assert features[1, :, 0].min() > 90
    assert features[1, :, -1].max() < 5
    assert features[1].mean() == pytest.approx(50, abs=100 / columns)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(12, 16, 3, 4), (13, 17, 3, 5), (5, 7, 5, 7), (4, 3, 9, 8), (1, 1, 1, 1)]
)
def test_a_units_sum_is_over_its_pixels(height, width, rows, columns):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, rows, columns)).astype(np.float32)
    units = rng.integers(0, 5, (height, width)).astype(np.int32)
    expected = np.zeros((5, 6))
    for y in range(height):
        for x in range(width):
            expected[units[y, x]] += features[:, y * rows // height, x * columns // width]
    found = unit_sums(features, units, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sums_of_all_units_are_the_sum_of_the_image():
    features = np.random.default_rng(1).random((3, 4, 6), dtype=np.float32)
    units = np.random.default_rng(2).integers(0, 9, (20, 30)).astype(np.int32)
    np.testing.assert_allclose(unit_sums(features, units, 9).sum(0), features.sum((1, 2)) * 25, rtol=1e-5)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_an_embedded_backbone_needs_its_name_alone(name, device):
    backbone = build_backbone(FeaturesConfig(backbone=name), device)
    assert isinstance(backbone, ColorTexture)
    assert backbone.name == name


@pytest.mark.parametrize("weights", ["random", "file.pth"])
def test_weights_for_an_embedded_backbone_are_refused(weights):
    with pytest.raises(UsageError, match="color-texture has no weights") as caught:
        build_backbone(FeaturesConfig(backbone="color-texture", weights=weights), "cpu")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["color-textur", "colour-texture", "color_texture"])
def test_a_misspelled_embedded_backbone_is_refused_with_the_right_name(name):
    with pytest.raises(UsageError, match=r"is unknown\. Did you mean 'color-texture'"):
        build_backbone(FeaturesConfig(backbone=name), "cpu")


def test_a_misspelled_vit_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="vit_tiny_patch16_224"):
        build_backbone(FeaturesConfig(backbone="vit_tinny_patch16_224", weights="random"), "cpu")


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="abacus"):
        build_backbone(FeaturesConfig(backbone="vit_tiny_patch16_224", weights="random"), "abacus")


def test_a_missing_weights_file_is_named(tmp_path):
    file = tmp_path / "none.safetensors"
    with pytest.raises((UsageError, WeightsError), match=r"none\.safetensors"):
        build_backbone(FeaturesConfig(backbone="vit_tiny_patch16_224", weights=str(file)), "cpu")


@pytest.mark.parametrize(("setting", "precision"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_precision_on_a_cpu_is_full_unless_asked_for(setting, precision):
    backbone = build_backbone(
        FeaturesConfig(backbone="vit_tiny_patch16_224", weights="random", precision=setting), "cpu"
    )
    assert backbone.precision == precision
    assert backbone.identity["weights"] == "random"
