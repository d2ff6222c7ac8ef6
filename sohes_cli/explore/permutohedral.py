"""Gaussian filtering of points in a few dimensions (position and color), in time linear in their number.

    filtered_i = sum over j of exp(-|f_i - f_j|^2 / 2) values_j,   approximately, up to a constant factor

The permutohedral lattice tiles the space with simplices. Splat: distribute each point's values over the d + 1 corners
of its simplex. Blur: filter the corners by (1/2, 1, 1/2) along each of d + 1 directions. Slice: interpolate back at the
points.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int32]
    Floats = NDArray[np.float32]

__all__ = ["PermutohedralLattice"]


@dataclass(frozen=True)
class PermutohedralLattice:
    """The simplices that contain P points of d dimensions, V corners in all.

    Args:
        corners: corners of each point's simplex, int32 [P, d + 1].
        weights: barycentric coordinates of each point, float32 [P, d + 1], rows sum to 1.
        neighbors: previous and next corner along each direction, int32 [d + 1, V, 2]; V if absent.
    """

    corners: Ints
    weights: Floats
    neighbors: Ints

    @classmethod
    def from_points(cls, features: Floats) -> PermutohedralLattice:
        """Build the lattice of points float32 [P, d], in units of the Gaussian's standard deviation."""
        n_points, d = features.shape
        slots = 1 << int(2 * n_points * (d + 1) + 1).bit_length()
        table = np.full(slots, -1, dtype=np.int32)
        corners, weights, keys = _insert_points(
            np.ascontiguousarray(features, dtype=np.float32), _axis_scales(d), table
        )
        return cls(corners, weights, _find_neighbors(keys, table))

    def weighted(self, factors: Floats) -> PermutohedralLattice:
        """Return a lattice whose filter multiplies values by `factors` [P] before and after the sum."""
        return replace(self, weights=self.weights * factors[:, None])

    def filter(self, values: Floats) -> Floats:
        """Sum values [P, C] over all points, weighted by the Gaussian of the distance, float32 [P, C]."""
        n_corners, n_channels = self.neighbors.shape[1], values.shape[1]
        lattice = np.zeros((n_corners + 1, n_channels), dtype=np.float32)  # the last row represents absent neighbors
        _splat(self.corners, self.weights, np.ascontiguousarray(values, dtype=np.float32), lattice)
        blurred = np.zeros_like(lattice)
        for neighbors in self.neighbors:
            _blur(neighbors, lattice, blurred)
            lattice, blurred = blurred, lattice
        return _slice(self.corners, self.weights, lattice)


def _axis_scales(d: int) -> Floats:
    """Compute the scale of each axis, [d], that gives splat, blur and slice together deviation 1 (section 3.1)."""
    axis = np.arange(d)
    scales: Floats = (np.sqrt(2 / 3) * (d + 1) / np.sqrt((axis + 1) * (axis + 2))).astype(np.float32)
    return scales


@numba.njit(cache=True, nogil=True)
def _insert_points(features: Floats, scales: Floats, table: Ints) -> tuple[Ints, Floats, Ints]:
    """Number the corners of all simplices by first use: corners, weights, and keys of the corners, int32 [V, d]."""
    n_points, d = features.shape
    corners = np.empty((n_points, d + 1), np.int32)
    weights = np.empty((n_points, d + 1), np.float32)
    keys = np.empty((n_points * (d + 1), d), np.int32)
    elevated, origin, rank = np.empty(d + 1, np.float32), np.empty(d + 1, np.int32), np.empty(d + 1, np.int32)
    barycentric, key = np.empty(d + 2, np.float32), np.empty(d, np.int32)
    count = 0
    for p in range(n_points):
        _elevate(features[p], scales, elevated)
        _enclosing_simplex(elevated, origin, rank, barycentric)
        for k in range(d + 1):
            for i in range(d):
                key[i] = origin[i] + (k if rank[i] <= d - k else k - d - 1)
            slot = _slot(key, keys, table)
            if table[slot] < 0:
                table[slot] = count
                keys[count] = key
                count += 1
            corners[p, k] = table[slot]
            weights[p, k] = barycentric[k]
    return corners, weights, keys[:count].copy()


@numba.njit(cache=True, nogil=True)
def _elevate(feature: Floats, scales: Floats, elevated: Floats) -> None:
    """Map a point to the hyperplane of d + 1 coordinates that sum to 0."""
    total = np.float32(0)
    for j in range(feature.shape[0], 0, -1):
        scaled = feature[j - 1] * scales[j - 1]
        elevated[j] = total - j * scaled
        total += scaled
    elevated[0] = total


@numba.njit(cache=True, nogil=True)
def _enclosing_simplex(elevated: Floats, origin: Ints, rank: Ints, barycentric: Floats) -> None:
    """Find the simplex of a point: its remainder-0 corner, the ranks of the coordinates, the weights of the corners."""
    size = elevated.shape[0]
    excess = 0
    for i in range(size):
        nearest = int(np.rint(elevated[i] / size))
        origin[i] = nearest * size
        excess += nearest
    rank[:] = excess
    for i in range(size - 1):
        for j in range(i + 1, size):
            if elevated[i] - origin[i] < elevated[j] - origin[j]:
                rank[i] += 1
            else:
                rank[j] += 1
    barycentric[:] = 0
    for i in range(size):
        if rank[i] < 0:  # rounding left the hyperplane: undo it along the coordinates that it moved most
            rank[i] += size
            origin[i] += size
        elif rank[i] >= size:
            rank[i] -= size
            origin[i] -= size
        frac = (elevated[i] - origin[i]) / size
        barycentric[size - 1 - rank[i]] += frac
        barycentric[size - rank[i]] -= frac
    barycentric[0] += 1 + barycentric[size]


@numba.njit(cache=True, nogil=True)
def _slot(key: Ints, keys: Ints, table: Ints) -> np.int64:
    """Find the slot of a key in the hash table, or the free slot to insert it (linear probing)."""
    mixed = np.uint64(0)
    for i in range(key.shape[0]):
        mixed = (mixed + np.uint64(np.int64(key[i]))) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    slot = np.int64(mixed & np.uint64(table.shape[0] - 1))
    while table[slot] >= 0:
        same = True
        for i in range(key.shape[0]):
            same = same and keys[table[slot], i] == key[i]
        if same:
            break
        slot = (slot + 1) & (table.shape[0] - 1)
    return slot


@numba.njit(cache=True, nogil=True)
def _find_neighbors(keys: Ints, table: Ints) -> Ints:
    """Find the previous and next corner along each direction, int32 [d + 1, V, 2]; V if absent."""
    n_corners, d = keys.shape
    neighbors = np.empty((d + 1, n_corners, 2), np.int32)
    key = np.empty(d, np.int32)
    for direction in range(d + 1):
        for v in range(n_corners):
            for side in range(2):
                step = 1 - 2 * side
                for i in range(d):
                    key[i] = keys[v, i] + (-d * step if i == direction else step)
                found = table[_slot(key, keys, table)]
                neighbors[direction, v, side] = found if found >= 0 else n_corners
    return neighbors


@numba.njit(cache=True, nogil=True, fastmath=True)
def _splat(corners: Ints, weights: Floats, values: Floats, lattice: Floats) -> None:
    """Add each point's values [P, C] to the corners of its simplex in `lattice` [V + 1, C]."""
    for p in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            corner, weight = corners[p, k], weights[p, k]
            for c in range(values.shape[1]):
                lattice[corner, c] += weight * values[p, c]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _blur(neighbors: Ints, lattice: Floats, blurred: Floats) -> None:
    """Blur `lattice` [V + 1, C] along the direction of `neighbors` [V, 2]."""
    half = np.float32(0.5)
    for v in range(neighbors.shape[0]):
        before, after = neighbors[v, 0], neighbors[v, 1]
        for c in range(lattice.shape[1]):
            blurred[v, c] = lattice[v, c] + half * (lattice[before, c] + lattice[after, c])


@numba.njit(cache=True, nogil=True, fastmath=True)
def _slice(corners: Ints, weights: Floats, lattice: Floats) -> Floats:
    """Interpolate the corners' values at the points, float32 [P, C]."""
    values = np.zeros((corners.shape[0], lattice.shape[1]), np.float32)
    for p in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            corner, weight = corners[p, k], weights[p, k]
            for c in range(lattice.shape[1]):
                values[p, c] += weight * lattice[corner, c]
    return values
