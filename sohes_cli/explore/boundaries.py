"""Boundary strength of each pixel, from the photograph alone: the difference of two half-discs around it.

    strength(p) = mean over scales of  max over orientations of  sum over cues of  chi2(half-disc 1, half-disc 2)

Cues are histograms of lightness, of two color-opponent channels and of oriented texture energy. Scales are the levels
of an image pyramid with one disc radius, so the cost falls by four per level. (Beyond the paper, whose masks get their
edges from a refiner.)

Source: half-disc operator of Pb (Martin, Fowlkes and Malik, PAMI 2004), multi-scale as in gPb (Arbelaez et al., PAMI
2011).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numba
import numpy as np

from sohes_cli.explore.histograms import soft_bins

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

__all__ = ["boundary_strength"]

RADIUS_PX = 3
ORIENTATIONS = 8
SCALES = 3
COLOR_BINS = 8
TEXTURE_ORIENTATIONS = 4
TEXTURE_BINS = 4
SMALLEST_SIDE_PX = 2 * RADIUS_PX + 1


def boundary_strength(pixels: NDArray[np.uint8]) -> Floats:
    """Compute the boundary strength of an RGB image, uint8 [H, W, 3].

    Returns:
        Strength, float32 [H, W], from 0 (uniform surroundings) to 8 (all cues differ completely); zero for an image
        smaller than the half-discs.
    """
    height, width = pixels.shape[:2]
    channels, channel_weights = _cue_histograms(pixels)
    offsets, wedges = _half_disc(RADIUS_PX, ORIENTATIONS)
    channel_weights /= np.float32(len(offsets))  # a half-disc's histogram sums to 1
    total = np.zeros((height, width), dtype=np.float32)
    for _ in range(SCALES):
        if min(channels.shape[:2]) < SMALLEST_SIDE_PX:
            break
        strength = _half_disc_difference(channels, channel_weights, offsets, wedges, ORIENTATIONS)
        total += cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR)
        channels = _halve(channels)
    return total / np.float32(SCALES)


def _cue_histograms(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Compute one-pixel histograms of all cues, float32 [H, W, C], and bin weights, float32 [C], of sum 1 per cue."""
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lightness, green_red, blue_yellow = (np.asarray(channel, dtype=np.float32) for channel in cv2.split(lab))
    cues = [
        soft_bins(lightness, 0, 100, COLOR_BINS),
        soft_bins(green_red, -50, 50, COLOR_BINS),
        soft_bins(blue_yellow, -50, 50, COLOR_BINS),
        *(soft_bins(energy, 0, 2, TEXTURE_BINS) for energy in _texture_energy(lightness)),
    ]
    shares = [1.0] * 3 + [1 / TEXTURE_ORIENTATIONS] * TEXTURE_ORIENTATIONS
    weights = np.repeat(shares, [cue.shape[-1] for cue in cues])
    return np.concatenate(cues, axis=-1), weights.astype(np.float32)


def _texture_energy(lightness: Floats) -> list[Floats]:
    """Compute absolute responses to zero-mean Gabor filters of several orientations, each [H, W] and about 0 to 2."""
    energies = []
    for k in range(TEXTURE_ORIENTATIONS):
        kernel = cv2.getGaborKernel(
            (9, 9), sigma=2.0, theta=math.pi * k / TEXTURE_ORIENTATIONS, lambd=5.0, gamma=1.0, psi=0
        )
        response = cv2.filter2D(lightness, cv2.CV_32F, kernel - kernel.mean())
        energies.append(np.abs(response).astype(np.float32) / np.float32(20))
    return energies


def _halve(channels: Floats) -> Floats:
    """Average 2 x 2 blocks of [H, W, C], dropping an odd last row or column."""
    height, width = channels.shape[0] // 2, channels.shape[1] // 2
    blocks = channels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, channels.shape[2])
    halved: Floats = blocks.mean(axis=(1, 3))
    return halved


def _half_disc(radius: int, orientations: int) -> tuple[Ints, Ints]:
    """Return the offsets (y, x) of a half-disc, [P, 2], and the wedge of each, 0..orientations-1, [P]."""
    offsets, wedges = [], []
    for y in range(radius + 1):
        for x in range(-radius, radius + 1):
            turn = math.atan2(y, x) / math.pi
            if (x or y) and x * x + y * y <= radius * radius and turn < 1:
                offsets.append((y, x))
                wedges.append(int(turn * orientations + 1e-9))
    return np.array(offsets, dtype=np.int64), np.array(wedges, dtype=np.int64)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _half_disc_difference(
    channels: Floats, channel_weights: Floats, offsets: Ints, wedges: Ints, orientations: int
) -> Floats:
    """Compute the largest weighted chi-squared difference over orientations, float32 [H, W]; borders are mirrored.

    With g the difference of the half-discs' histograms and s their sum, chi2 = sum of g^2 / s. A turn by one wedge
    swaps this wedge with its opposite, so g changes by twice their difference.

    Args:
        channels: one-pixel histograms, float32 [H, W, C].
        channel_weights: weight of each bin, float32 [C].
        offsets: one half of the disc, (y, x) [P, 2]; the other half mirrors it.
        wedges: wedge of each offset, 0..orientations-1, [P].
        orientations: wedges per half-disc.
    """
    height, width, n_channels = channels.shape
    strength = np.empty((height, width), np.float32)
    turns = np.empty((orientations, n_channels), np.float32)  # each wedge minus its opposite
    gap, whole = np.empty(n_channels, np.float32), np.empty(n_channels, np.float32)
    scale = np.empty(n_channels, np.float32)
    for y in range(height):
        for x in range(width):
            turns[:] = 0
            whole[:] = 0
            for p in range(offsets.shape[0]):
                row, column = abs(y + offsets[p, 0]), abs(x + offsets[p, 1])
                one = channels[min(row, 2 * height - 2 - row), min(column, 2 * width - 2 - column)]
                row, column = abs(y - offsets[p, 0]), abs(x - offsets[p, 1])
                other = channels[min(row, 2 * height - 2 - row), min(column, 2 * width - 2 - column)]
                turn = turns[wedges[p]]
                for c in range(n_channels):
                    turn[c] += one[c] - other[c]
                    whole[c] += one[c] + other[c]
            gap[:] = 0
            for k in range(orientations):
                for c in range(n_channels):
                    gap[c] += turns[k, c]
            for c in range(n_channels):
                scale[c] = channel_weights[c] / (whole[c] + np.float32(1e-3))
            best = np.float32(0)
            for k in range(orientations):
                difference = np.float32(0)
                for c in range(n_channels):
                    difference += scale[c] * gap[c] * gap[c]
                best = max(best, difference)
                for c in range(n_channels):
                    gap[c] -= 2 * turns[k, c]
            strength[y, x] = best
    return strength
