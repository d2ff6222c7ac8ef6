"""Region graphs that try a merge from many sides: features [R, C] and edges [E, 2] by name."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from sohes_kernels import grid_edges

DOWN_TO_THE_END = (1.0, 0.999, 0.9, 0.5, 0.0, -0.5, -1.0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def smooth(seed, channels, height, width):
    """Blurred noise as region features, [h * w, C]."""
    blurred = gaussian_filter(normal(seed, channels, height, width), (0, 2, 2))
    return (blurred / blurred.std() + 0.3 * normal(seed + 1, channels, height, width)).reshape(channels, -1).T


def background(seed, channels, n_regions, noise):
    """A common feature plus noise: one region swallows the others one by one and has many neighbors."""
    return normal(seed, 1, channels) + noise * normal(seed + 1, n_regions, channels)


def mirrored(height, width, channels):
    grid = smooth(5, channels, height, width).reshape(height, width, channels)
    grid[:, width - width // 2 :] = grid[:, : width // 2][:, ::-1]
    return grid.reshape(-1, channels)


def random_edges(seed, n_regions, n_edges):
    """Pairs of different regions in any direction, repeats likely, [E, 2]."""
    rng = np.random.default_rng(seed)
    first = rng.integers(n_regions, size=n_edges)
    return np.stack([first, (first + rng.integers(1, n_regions, size=n_edges)) % n_regions], axis=1)


def sorted_pairs(edges):
    """Distinct pairs, the lower index first, in order."""
    return np.unique(np.sort(edges, axis=1), axis=0).reshape(-1, 2)


def nearby_edges(seed, n_regions, neighbors):
    """Each of random points with its nearest ones: nearly planar."""
    points = np.random.default_rng(seed).random((n_regions, 2))
    nearest = np.linalg.norm(points[:, None] - points, axis=-1).argsort(axis=1)[:, 1 : neighbors + 1]
    return np.stack([np.repeat(np.arange(n_regions), neighbors), nearest.ravel()], axis=1)


def star(n_leaves, n_hubs):
    """Hubs in a row, each joined to all of the leaves, which come first."""
    spokes = [np.stack([np.arange(n_leaves), np.full(n_leaves, n_leaves + hub)], axis=1) for hub in range(n_hubs)]
    between = [[n_leaves + hub, n_leaves + hub + 1] for hub in range(n_hubs - 1)]
    return np.concatenate([*spokes, np.array(between, dtype=np.int64).reshape(-1, 2)])


def uneven(seed, n_regions, spread):
    """Two channels, some features far larger than others: a region with many neighbors turns to and fro."""
    rng = np.random.default_rng(seed)
    directions = np.array([1, 0]) + spread * rng.normal(size=(n_regions, 2))
    sizes = np.exp(2 * rng.normal(size=(n_regions, 1)))
    return (sizes * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)


def with_zeros(features, every):
    features = features.copy()
    features[::every] = 0
    return features


def turned_from_opposite():
    """A hub of many neighbors, one opposite up to rounding, turns by a radian, then by almost as little as a bound
    allows; another pair has a cosine 1e-4 below the resulting one.
    """

    def direction(angle, length=1.0):
        return [length * np.cos(angle), length * np.sin(angle)]

    around = [direction(0), direction(1.0, 1e4), direction(1.4, 51.0), direction(np.pi - 2.4e-4)]
    around += [direction(-(np.pi - 0.3 - 0.001 * k)) for k in range(40)]
    features = np.array([direction(0), *around, direction(0), direction(np.arccos(-0.538677))], dtype=np.float32)
    spokes = [[0, k] for k in range(1, len(around) + 1)]
    return features, np.array([*spokes, [len(features) - 2, len(features) - 1]])


CASES = {
    "smooth grid": (smooth(0, 24, 18, 17), grid_edges(18, 17)),
    "noisy grid": (normal(1, 18 * 17, 24), grid_edges(18, 17)),
    "background": (background(2, 16, 24 * 23, 1.0), grid_edges(24, 23)),
    "clear background": (background(3, 16, 24 * 23, 0.05), grid_edges(24, 23)),
    "background down to rounding": (background(4, 16, 24 * 23, 1e-3), grid_edges(24, 23)),
    "positive features": (np.abs(normal(5, 20 * 20, 12)), grid_edges(20, 20)),
    "constant": (np.ones((15 * 14, 7), np.float32), grid_edges(15, 14)),
    "constant, not representable": (np.full((15 * 14, 7), 0.1, np.float32), grid_edges(15, 14)),
    "mirrored": (mirrored(16, 16, 8), grid_edges(16, 16)),
    "two values": (normal(6, 2, 9)[np.random.default_rng(6).integers(2, size=256)], grid_edges(16, 16)),
    "quantized": (np.round(normal(7, 16 * 16, 3)), grid_edges(16, 16)),
    "signs": (np.sign(normal(8, 16 * 16, 2)), grid_edges(16, 16)),
    "all zero": (np.zeros((6 * 7, 3), np.float32), grid_edges(6, 7)),
    "some zero": (with_zeros(background(9, 8, 20 * 20, 0.7), 5), grid_edges(20, 20)),
    "one region": (normal(10, 1, 5), np.empty((0, 2), np.int64)),
    "one zero region": (np.zeros((1, 1), np.float32), grid_edges(1, 1)),
    "no edges": (normal(11, 12, 5), np.empty((0, 2), np.int64)),
    "row": (smooth(12, 6, 1, 53), grid_edges(1, 53)),
    "column": (smooth(13, 6, 53, 1), grid_edges(53, 1)),
    "primes": (smooth(14, 11, 13, 7), grid_edges(13, 7)),
    "one channel": (normal(15, 13 * 11, 1), grid_edges(13, 11)),
    "many channels": (smooth(16, 384, 10, 11), grid_edges(10, 11)),
    "prime channels": (background(17, 397, 11 * 11, 2.0), grid_edges(11, 11)),
    "two components": (smooth(18, 6, 9, 12), np.concatenate([grid_edges(4, 12), grid_edges(5, 12) + 48])),
    "nearly planar": (normal(19, 150, 6) + 0.5, nearby_edges(19, 150, 4)),
    "arbitrary graph": (normal(20, 90, 6) + 0.3, random_edges(20, 90, 260)),
    "sparse graph": (normal(21, 120, 4), random_edges(21, 120, 90)),
    "complete graph": (normal(22, 50, 5) + 0.4, np.argwhere(np.triu(np.ones((50, 50)), 1))),
    "star": (normal(23, 121, 8) + 0.2, star(120, 1)),
    "star of opposites": (np.concatenate([np.tile([[1, 2], [-1, -2]], (40, 1)), [[2, 1]]]), star(80, 1)),
    "star around nothing": (np.concatenate([np.zeros((3, 3)), np.round(normal(24, 77, 3)), [[0, 0, 0]]]), star(80, 1)),
    "three hubs": (normal(25, 93, 8) + 0.3, star(90, 3)),
    "uneven sizes": (uneven(37, 400, 0.3), grid_edges(20, 20)),
    "uneven sizes, wide": (uneven(29, 400, 1.0), grid_edges(20, 20)),
    "turned from opposite": turned_from_opposite(),
    "tiny numbers": (background(26, 6, 81, 0.5) * np.float32(1e-40), grid_edges(9, 9)),
    "large numbers": (background(27, 6, 81, 0.5) * np.float32(1e34), grid_edges(9, 9)),
}
