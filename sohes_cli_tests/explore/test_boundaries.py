"""Boundary strength against a slow half-disc formula in plain NumPy, and on images with known boundaries."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from sohes_cli.explore.boundaries import boundary_strength


def triangles(values, low, high, bins):
    position = (np.clip(values, low, high) - low) * (bins - 1) / (high - low)
    return np.maximum(1 - np.abs(position[..., None] - np.arange(bins)), 0)


def slow_cues(pixels):
    """Histograms [H, W, bins] of lightness, two color channels, and texture energy at each of four orientations."""
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).astype(float)
    color = [triangles(lab[..., 0], 0, 100, 8), triangles(lab[..., 1], -50, 50, 8), triangles(lab[..., 2], -50, 50, 8)]
    texture = []
    for k in range(4):
        kernel = cv2.getGaborKernel((9, 9), 2.0, math.pi * k / 4, 5.0, 1.0, 0)
        texture.append(
            triangles(np.abs(ndimage.correlate(lab[..., 0], kernel - kernel.mean(), mode="mirror")) / 20, 0, 2, 4)
        )
    return color, texture


def slow_half_discs(cue):
    """Chi-squared differences of the normalized half-disc histograms, [H, W, orientations]."""
    height, width, _ = cue.shape
    padded = np.pad(cue, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    disc = [(y, x) for y in range(-3, 4) for x in range(-3, 4) if 0 < y * y + x * x <= 9]
    found = np.zeros((height, width, 8))
    for k in range(8):
        sides = [[], []]
        for y, x in disc:
            angle = (math.degrees(math.atan2(y, x)) - 180 * k / 8 + 1e-6) % 360
            sides[int(angle >= 180)].append(padded[3 + y : 3 + y + height, 3 + x : 3 + x + width])
        one, other = (np.mean(side, axis=0) for side in sides)
        assert len(sides[0]) == len(sides[1]) == 14
        found[..., k] = ((one - other) ** 2 / (one + other + 1e-3 / 14)).sum(-1)
    return found


def slow_strength(pixels):
    height, width, _ = pixels.shape
    color, texture = slow_cues(pixels)
    total = np.zeros((height, width))
    for _ in range(3):
        if min(color[0].shape[:2]) < 7:
            break
        differences = sum(slow_half_discs(cue) for cue in color) + sum(slow_half_discs(cue) for cue in texture) / 4
        total += cv2.resize(differences.max(-1), (width, height), interpolation=cv2.INTER_LINEAR)
        h, w = color[0].shape[0] // 2, color[0].shape[1] // 2
        color, texture = (
            [np.mean([c[i : 2 * h : 2, j : 2 * w : 2] for i in (0, 1) for j in (0, 1)], axis=0) for c in cues]
            for cues in (color, texture)
        )
    return total / 3


@pytest.mark.parametrize(("height", "width"), [(33, 29), (16, 14), (15, 40), (7, 7), (13, 9)])
def test_strength_is_the_half_disc_formula(height, width):
    pixels = data.astronaut()[100 : 100 + height, 200 : 200 + width]
    np.testing.assert_allclose(boundary_strength(pixels), slow_strength(pixels), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (12, 200, 90)])
def test_a_uniform_image_has_no_boundary(color):
    assert boundary_strength(np.full((40, 30, 3), color, np.uint8)).max() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (6, 100), (100, 6), (1, 50)])
def test_an_image_smaller_than_the_half_discs_has_none(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = boundary_strength(noise)
    assert found.shape == (height, width)
    assert found.dtype == np.float32
    assert not found.any()


@pytest.mark.parametrize("degrees", np.arange(0, 180, 15))
def test_a_step_is_strongest_at_the_edge_whatever_its_direction(degrees):
    y, x = np.mgrid[:96, :96] - 47.5
    distance = x * math.cos(math.radians(degrees)) + y * math.sin(math.radians(degrees))
    pixels = np.where((distance > 0)[..., None], (200, 60, 40), (30, 90, 160)).astype(np.uint8)
    strength = boundary_strength(pixels)
    inner = np.hypot(x, y) < 36  # away from the border, where the edge meets its mirror image
    on_edge, near, far = (
        strength[inner & (abs(distance) < d[1]) & (abs(distance) >= d[0])] for d in ((0, 1), (5, 8), (20, 36))
    )
    assert on_edge.min() > 2 * near.mean()
    assert on_edge.min() > 2.5
    assert far.max() < 0.05


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_image_turns_the_boundaries(turns):
    pixels = data.astronaut()[60:124, 180:244]
    turned = boundary_strength(np.ascontiguousarray(np.rot90(pixels, turns)))
    np.testing.assert_allclose(turned, np.rot90(boundary_strength(pixels), turns), atol=2e-3)


def test_mirroring_the_image_mirrors_the_boundaries_nearly():
    pixels = data.astronaut()[60:156, 180:276]
    strength = boundary_strength(pixels)
    mirrored = boundary_strength(np.ascontiguousarray(pixels[:, ::-1]))[:, ::-1]
    # pixels on the dividing line belong to the half-disc that begins there, so the two differ a little
    assert np.corrcoef(strength.ravel(), mirrored.ravel())[0, 1] > 0.99
    assert np.abs(strength - mirrored).mean() < 0.05 * strength.mean()


def test_texture_alone_makes_a_boundary():
    y, x = np.mgrid[:80, :80]
    stripes = np.where(x < 40, np.sin(x * 2 * math.pi / 5), np.sin(y * 2 * math.pi / 5))
    strength = boundary_strength(np.repeat((128 + 60 * stripes)[..., None], 3, axis=-1).astype(np.uint8))
    edge, left, right = (strength[15:65, columns].mean() for columns in (slice(38, 42), slice(15, 25), slice(55, 65)))
    assert edge > 1.4 * left
    assert edge > 1.4 * right


def test_strength_stays_in_its_range():
    noise = np.random.default_rng(1).integers(0, 2, (48, 48, 1), dtype=np.uint8).repeat(3, -1) * 255
    strength = boundary_strength(noise)
    assert strength.min() >= 0
    assert strength.max() <= 8
