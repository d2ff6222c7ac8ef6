"""Diffusion features of units: their cosines are the heat kernel of a random walk that avoids boundaries.

    W_ij = border_ij exp(-beta strength_ij),   L = I - D^-1/2 W D^-1/2 = V diag(lambda) V^T
    phi_i(t) = row i of V exp(-t lambda / 2), normalized;   K_ij(t) = <phi_i(t), phi_j(t)>

K(t) is the heat kernel of the unit graph: a small t groups small neighborhoods, a large t whole entities. Regions are
sums of features, so the cosine of two regions is their normalized average heat kernel, and the merging rule applies
unchanged. The backbone's features enter by a product of kernels: units are similar if both boundaries and backbone
agree. (Beyond the paper, which merges by backbone features alone.)

Source: diffusion maps, Coifman and Lafon 2006; boundaries as graph weights as in gPb's globalization, Arbelaez et al.
2011.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sohes_cli.explore.superpixels import UnitGraph

__all__ = ["diffusion_features", "product_features"]

_SHIFT = 1e-3  # keeps the shifted Laplacian invertible
_LANDMARKS = 256


def diffusion_features(graph: UnitGraph, beta: float, times: Sequence[float], eigenvectors: int) -> NDArray[np.float32]:
    """Embed the units of an image so that cosines are heat kernels, averaged over diffusion times.

    Args:
        graph: units and the boundary strength between them.
        beta: weight of boundaries, >= 0.
        times: diffusion times, T.
        eigenvectors: number of the smoothest eigenvectors to use, at most K.

    Returns:
        Unit-length features, float32 [R, T * K].
    """
    n_units = len(graph)
    used = min(eigenvectors, n_units - 2)
    if used < 1:
        return np.ones((n_units, 1), dtype=np.float32)
    eigenvalues, vectors = _smoothest(graph, beta, used)
    parts = []
    for time in times:
        part = vectors * np.exp(-0.5 * time * eigenvalues)
        parts.append(_unit_length(part) / np.sqrt(len(times)))
    return np.concatenate(parts, axis=1).astype(np.float32)


def product_features(first: NDArray[np.float32], second: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Embed units so that cosines approximate max(cos_first, 0)^power * max(cos_second, 0), float32 [R, K <= 256].

    The Nystrom method approximates the product kernel from its columns at evenly spaced landmark units.

    Args:
        first: features of any length, float32 [R, C].
        second: features of any length, float32 [R, D].
        power: exponent of the first kernel, > 0.
    """
    x, y = _unit_length(first.astype(np.float64)), _unit_length(second.astype(np.float64))
    landmarks = np.unique(np.linspace(0, len(x) - 1, min(_LANDMARKS, len(x))).round().astype(np.int64))
    columns = np.maximum(x @ x[landmarks].T, 0) ** power * np.maximum(y @ y[landmarks].T, 0)
    eigenvalues, vectors = np.linalg.eigh(columns[landmarks])
    kept = eigenvalues > 1e-4 * eigenvalues[-1]
    features: NDArray[np.float32] = (columns @ (vectors[:, kept] / np.sqrt(eigenvalues[kept]))).astype(np.float32)
    return features


def _smoothest(graph: UnitGraph, beta: float, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the smallest eigenvalues of the normalized Laplacian, [K], and their eigenvectors, [R, K]."""
    n_units = len(graph)
    weights = graph.border_px * np.exp(-beta * graph.border_strength) + 1e-4
    low, high = graph.edges.T
    adjacency = sparse.coo_matrix(
        (np.concatenate([weights, weights]), (np.concatenate([low, high]), np.concatenate([high, low]))),
        shape=(n_units, n_units),
    ).tocsc()
    scale = sparse.diags(1 / np.sqrt(np.asarray(adjacency.sum(axis=1)).ravel()))
    laplacian = sparse.identity(n_units) * (1 + _SHIFT) - scale @ adjacency @ scale
    eigenvalues, vectors = eigsh(laplacian.tocsc(), k=count, sigma=0, which="LM", v0=np.ones(n_units))
    return np.maximum(eigenvalues - _SHIFT, 0), vectors


def _unit_length(features: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-12)
    return unit
