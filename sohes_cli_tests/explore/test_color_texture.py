"""The embedded descriptor against a plain computation of its histograms, and what its cosine must mean."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from skimage import data

from sohes_cli.explore.color_texture import ColorTexture


def triangles(values, low, high, bins):
    position = (np.clip(values, low, high) - low) * (bins - 1) / (high - low)
    return np.maximum(1 - np.abs(position[..., None] - np.arange(bins)), 0)


def slow_orientations(gray, sigma):
    """Gradient orientation modulo a half turn in 8 bins around the circle, and one bin for what is flat."""
    smooth = cv2.GaussianBlur(gray, (0, 0), sigma)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(smooth, cv2.CV_32F, 0, 1) / 8
    strength = np.minimum(np.hypot(across, down) / 10, 1)[..., None]
    position = (np.arctan2(down, across) % math.pi) * 8 / math.pi
    distance = np.abs(position[..., None] - np.arange(8))
    return np.concatenate([np.maximum(1 - np.minimum(distance, 8 - distance), 0) * strength, 1 - strength], axis=-1)


def slow_histograms(image):
    """The five normalized histograms of each 4 x 4 patch, each [h, w, bins]."""
    lab = cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    maps = [triangles(lab[..., 0], 0, 100, 9), triangles(lab[..., 1], -60, 60, 13), triangles(lab[..., 2], -60, 60, 13)]
    maps += [slow_orientations(gray, 1.0), slow_orientations(gray, 2.0)]
    h, w = image.shape[0] // 4, image.shape[1] // 4
    return [m.reshape(h, 4, w, 4, -1).mean((1, 3)) for m in maps]


def test_the_cosine_is_the_mean_bhattacharyya_coefficient():
    image = data.astronaut()[60:124, 180:260]
    features = ColorTexture().extract(image[None])[0]
    patches = features.reshape(len(features), -1)
    histograms = [h.reshape(-1, h.shape[-1]) for h in slow_histograms(image)]
    for h in histograms:
        np.testing.assert_allclose(h.sum(-1), 1, atol=1e-5)
    coefficients = np.mean([np.sqrt(h) @ np.sqrt(h).T for h in histograms], axis=0)
    np.testing.assert_allclose(patches.T @ patches, coefficients, atol=1e-3)


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (64, 48)])
def test_patches_have_unit_length_and_the_stated_shape(size):
    backbone = ColorTexture()
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    features = backbone.extract(images)
    assert features.shape == (3, backbone.channels, size[0] // backbone.patch_size, size[1] // backbone.patch_size)
    assert features.dtype == np.float32
    assert features.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_a_uniform_image_has_one_feature():
    features = ColorTexture().extract(np.full((1, 32, 40, 3), (20, 120, 200), np.uint8))[0]
    patches = features.reshape(len(features), -1)
    np.testing.assert_allclose(patches.T @ patches, 1, atol=1e-5)


def test_a_repeated_pattern_has_a_repeated_feature():
    tile = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    features = ColorTexture().extract(np.tile(tile, (4, 4, 1))[None])[0]
    inner = features[:, 4:12, 4:12]  # the blur of the border is another
    np.testing.assert_allclose(inner[:, :4, :4], inner[:, 4:, 4:], atol=1e-6)


def test_color_and_direction_both_tell_patches_apart():
    y, x = np.mgrid[:64, :64]
    stripes = [np.repeat((128 + 100 * np.sin(axis * 0.8))[..., None], 3, -1).astype(np.uint8) for axis in (x, y)]
    red, blue = np.full((64, 64, 3), (200, 40, 40), np.uint8), np.full((64, 64, 3), (40, 40, 200), np.uint8)
    across, down, r, b = (f[:, 8, 8] for f in ColorTexture().extract(np.stack([*stripes, red, blue])))
    assert r @ b < 0.7
    assert across @ down < 0.85
    assert r @ across < 0.7


def test_images_of_a_batch_do_not_touch_each_other():
    images = np.stack([data.astronaut()[:32, :32], data.astronaut()[100:132, 200:232]])
    together = ColorTexture().extract(images)
    for image, features in zip(images, together, strict=True):
        np.testing.assert_array_equal(ColorTexture().extract(image[None])[0], features)


def test_it_names_itself_and_its_thresholds():
    backbone = ColorTexture()
    assert backbone.identity == {"name": "color-texture", "weights": "none"}
    assert all(1 > a > b > 0 for a, b in zip(backbone.thresholds, backbone.thresholds[1:], strict=False))
