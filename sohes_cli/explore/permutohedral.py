"""Gaussian filtering in a space of a few dimensions (place and color), in time linear in the number of points.

    filtered_i = sum over j of exp(-|f_i - f_j|^2 / 2) values_j,   up to one constant factor, approximately

The space is cut into simplices. Each point's values are spread over the d + 1 corners of its simplex, the corners are
blurred along each of the d + 1 lattice directions by (1/2, 1, 1/2), and the result is read back at the points.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PermutohedralLattice"]


@dataclass(frozen=True)
class PermutohedralLattice:
    """The corners of the simplices that hold P points of d dimensions, V corners in all.

    Args:
        corners: the corners of each point's simplex, int32 [P, d + 1].
        weights: the point's barycentric coordinates in it, float32 [P, d + 1], rows sum to 1.
        neighbors: the corners before and after each corner along each direction, int32 [d + 1, V, 2]; V where there is none.
    """

    corners: NDArray[np.int32]
    weights: NDArray[np.float32]
    neighbors: NDArray[np.int32]

    @classmethod
    def from_points(cls, features: NDArray[np.float32]) -> PermutohedralLattice:
        """Build the lattice of points float32 [P, d], in units of the Gaussian's standard deviation."""
        n_points, d = features.shape
        slots = 1 << int(2 * n_points * (d + 1) + 1).bit_length()
        table = np.full(slots, -1, dtype=np.int32)
        corners, weights, keys = _insert_points(
            np.ascontiguousarray(features, dtype=np.float32), _axis_scales(d), table
        )
        return cls(corners, weights, _find_neighbors(keys, table))

    def weighted(self, factors: NDArray[np.float32]) -> PermutohedralLattice:
        """The same lattice, its filter multiplying values by `factors` [P] before it sums and once more after."""
        return replace(self, weights=self.weights * factors[:, None])

    def filter(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum values [P, C] over all points, weighted by the Gaussian of the distance, float32 [P, C]."""
        n_corners, n_channels = self.neighbors.shape[1], values.shape[1]
        held = np.zeros((n_corners + 1, n_channels), dtype=np.float32)  # the last row stands for absent neighbors
        _splat(self.corners, self.weights, np.ascontiguousarray(values, dtype=np.float32), held)
        other = np.zeros_like(held)
        for direction in self.neighbors:
            _blur(direction, held, other)
            held, other = other, held
        return _slice(self.corners, self.weights, held)


def _axis_scales(d: int) -> NDArray[np.float32]:
    """Length of each axis in the lattice (section 3.1 there), so that splat, blur and slice together have deviation 1, [d]."""
    axis = np.arange(d)
    scales: NDArray[np.float32] = (np.sqrt(2 / 3) * (d + 1) / np.sqrt((axis + 1) * (axis + 2))).astype(np.float32)
    return scales


@numba.njit(cache=True, nogil=True)
def _insert_points(
    features: NDArray[np.float32], scales: NDArray[np.float32], table: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Number the corners of every point's simplex in order of first use: corners, weights and the corners' keys int32 [V, d]."""
    n_points, d = features.shape
    corners = np.empty((n_points, d + 1), np.int32)
    weights = np.empty((n_points, d + 1), np.float32)
    keys = np.empty((n_points * (d + 1), d), np.int32)
    place, origin, rank = np.empty(d + 1, np.float32), np.empty(d + 1, np.int32), np.empty(d + 1, np.int32)
    barycentric, key = np.empty(d + 2, np.float32), np.empty(d, np.int32)
    count = 0
    for p in range(n_points):
        _elevate(features[p], scales, place)
        _enclosing_simplex(place, origin, rank, barycentric)
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
def _elevate(feature: NDArray[np.float32], scales: NDArray[np.float32], place: NDArray[np.float32]) -> None:
    """Map a point into the plane of d + 1 coordinates that sum to 0."""
    total = np.float32(0)
    for j in range(feature.shape[0], 0, -1):
        scaled = feature[j - 1] * scales[j - 1]
        place[j] = total - j * scaled
        total += scaled
    place[0] = total


@numba.njit(cache=True, nogil=True)
def _enclosing_simplex(
    place: NDArray[np.float32], origin: NDArray[np.int32], rank: NDArray[np.int32], barycentric: NDArray[np.float32]
) -> None:
    """Find the simplex around a place: its corner of remainder 0, the order of the coordinates and the weights of the corners."""
    size = place.shape[0]
    excess = 0
    for i in range(size):
        nearest = int(np.rint(place[i] / size))
        origin[i] = nearest * size
        excess += nearest
    rank[:] = excess
    for i in range(size - 1):
        for j in range(i + 1, size):
            if place[i] - origin[i] < place[j] - origin[j]:
                rank[i] += 1
            else:
                rank[j] += 1
    barycentric[:] = 0
    for i in range(size):
        if rank[i] < 0:  # rounding left the plane: go back along the coordinates that it moved the most
            rank[i] += size
            origin[i] += size
        elif rank[i] >= size:
            rank[i] -= size
            origin[i] -= size
        share = (place[i] - origin[i]) / size
        barycentric[size - 1 - rank[i]] += share
        barycentric[size - rank[i]] -= share
    barycentric[0] += 1 + barycentric[size]


@numba.njit(cache=True, nogil=True)
def _slot(key: NDArray[np.int32], keys: NDArray[np.int32], table: NDArray[np.int32]) -> np.int64:
    """The slot of a key in the hash table, or the free slot where it belongs (linear probing)."""
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
def _find_neighbors(keys: NDArray[np.int32], table: NDArray[np.int32]) -> NDArray[np.int32]:
    """The corners one step before and after each corner along each direction, int32 [d + 1, V, 2]; V where there is none."""
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
def _splat(
    corners: NDArray[np.int32], weights: NDArray[np.float32], values: NDArray[np.float32], held: NDArray[np.float32]
) -> None:
    """Add each point's values [P, C] to the corners of its simplex, `held` [V + 1, C]."""
    for p in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            corner, weight = corners[p, k], weights[p, k]
            for c in range(values.shape[1]):
                held[corner, c] += weight * values[p, c]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _blur(neighbors: NDArray[np.int32], held: NDArray[np.float32], blurred: NDArray[np.float32]) -> None:
    """Blur `held` [V + 1, C] along one direction, of which `neighbors` [V, 2] are the steps."""
    half = np.float32(0.5)
    for v in range(neighbors.shape[0]):
        before, after = neighbors[v, 0], neighbors[v, 1]
        for c in range(held.shape[1]):
            blurred[v, c] = held[v, c] + half * (held[before, c] + held[after, c])


@numba.njit(cache=True, nogil=True, fastmath=True)
def _slice(corners: NDArray[np.int32], weights: NDArray[np.float32], held: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read the corners' values back at the points, float32 [P, C]."""
    values = np.zeros((corners.shape[0], held.shape[1]), np.float32)
    for p in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            corner, weight = corners[p, k], weights[p, k]
            for c in range(held.shape[1]):
                values[p, c] += weight * held[corner, c]
    return values
