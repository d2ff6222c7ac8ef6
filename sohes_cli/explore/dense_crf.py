"""Dense CRF: all masks of an image relabeled by mean-field inference, so that near and similarly colored pixels agree.

    Q_i(l) ~ exp(-U_i(l) + sum over kernels m, pixels j of  w_m k_m(i, j) Q_j(l)),   iterated from Q ~ exp(-U)

Disjoint masks form a layer, one multi-label problem with label 0 for the background, so neighboring masks compete for
pixels; one lattice per image serves all layers. In U a pixel's own label has probability `confidence`, and the others
share the rest. k_1 is a Gaussian of distance, k_2 of distance and color, both normalized symmetrically, k(i, j) /
sqrt(sum_j k(i, j) sum_i k(i, j)). As in the authors' code, the sum includes j = i.

Source: Krahenbuhl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011;
settings of CutLER and UnSAM, with hard labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

from sohes_cli.explore.permutohedral import PermutohedralLattice
from sohes_cli.masks.packed import PackedMasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CrfSettings", "PairwiseKernels", "crf_masks", "disjoint_layers", "mean_field"]


@dataclass(frozen=True)
class CrfSettings:
    """Settings of the energy and of the inference.

    Args:
        iterations: mean-field iterations.
        confidence: probability of a pixel's own label in the unary term.
        gaussian_weight: w_1.
        gaussian_px: standard deviation of k_1.
        bilateral_weight: w_2.
        bilateral_px: standard deviation of k_2 over distance.
        bilateral_rgb: standard deviation of k_2 over each color channel, in 0..255.
        shared_share: largest overlap within a layer, as a share of the smaller mask, which owns the shared pixels.
        max_labels: labels per layer, background included; bounds the memory to about 20 bytes per pixel and label.
    """

    iterations: int = 10
    confidence: float = 0.7
    gaussian_weight: float = 7.0
    gaussian_px: float = 3.0
    bilateral_weight: float = 10.0
    bilateral_px: float = 50.0
    bilateral_rgb: float = 5.0
    shared_share: float = 0.02
    max_labels: int = 32


@dataclass(frozen=True)
class PairwiseKernels:
    """Normalized and weighted pairwise kernels of one image, over its pixels in raster order.

    Args:
        gaussian: w_1 k_1.
        bilateral: w_2 k_2.
    """

    gaussian: PermutohedralLattice
    bilateral: PermutohedralLattice

    @classmethod
    def from_pixels(cls, pixels: NDArray[np.uint8], settings: CrfSettings) -> PairwiseKernels:
        """Build both lattices for an RGB image, uint8 [H, W, 3]."""
        height, width = pixels.shape[:2]
        y, x = np.mgrid[:height, :width]
        xy = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
        color = pixels.reshape(-1, 3).astype(np.float32) / np.float32(settings.bilateral_rgb)
        xy_and_color = np.concatenate([xy / np.float32(settings.bilateral_px), color], axis=1)
        return cls(
            _normalized(xy / np.float32(settings.gaussian_px), settings.gaussian_weight),
            _normalized(xy_and_color, settings.bilateral_weight),
        )

    def messages(self, q: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the messages to all pixels, float32 [P, L], from label probabilities float32 [P, L]."""
        messages = self.bilateral.filter(q)
        messages += self.gaussian.filter(q)
        return messages


def crf_masks(masks: PackedMasks, pixels: NDArray[np.uint8], settings: CrfSettings | None = None) -> PackedMasks:
    """Refine masks by one mean field per layer.

    Args:
        masks: N masks; their order does not influence the result.
        pixels: RGB image, uint8 [H, W, 3].
        settings: None for the defaults.

    Returns:
        The N refined masks, in the same order; some may be empty. Masks of one layer are disjoint.
    """
    settings = settings or CrfSettings()
    kernels = PairwiseKernels.from_pixels(pixels, settings)
    bits = np.zeros_like(masks.bits)
    for layer in disjoint_layers(masks, settings.shared_share, settings.max_labels - 1):
        labels = np.zeros((masks.height, masks.width), dtype=np.int32)
        for label, mask in enumerate(masks[layer], start=1):
            labels[mask] = label
        q = mean_field(labels.ravel(), len(layer) + 1, kernels, settings)
        refined = q.argmax(axis=1).astype(np.int32).reshape(labels.shape)
        bits[layer] = PackedMasks.from_units(np.eye(len(layer) + 1, dtype=np.bool_)[1:], refined).bits
    return PackedMasks(bits, masks.height, masks.width)


def disjoint_layers(masks: PackedMasks, shared_share: float, max_masks: int) -> list[NDArray[np.int64]]:
    """Assign each mask, largest first, to the first layer with room whose masks it does not overlap.

    Args:
        masks: N masks; ties in area are broken by pixels, so their order does not matter.
        shared_share: largest overlap to ignore, as a share of the smaller mask.
        max_masks: largest number of masks per layer.

    Returns:
        Indices of each layer's masks, largest first; every mask is in one layer.
    """
    areas, shared = masks.areas(), masks.intersections()
    apart = shared <= shared_share * np.minimum(areas[:, None], areas)
    layers: list[list[int]] = []
    for i in sorted(range(len(masks)), key=lambda i: (-areas[i], masks.bits[i].tobytes())):
        fitting = (layer for layer in layers if len(layer) < max_masks and apart[i, layer].all())
        layer = next(fitting, None)
        if layer is None:
            layers.append(layer := [])
        layer.append(i)
    return [np.array(layer, dtype=np.int64) for layer in layers]


def mean_field(
    labels: NDArray[np.int32], n_labels: int, kernels: PairwiseKernels, settings: CrfSettings
) -> NDArray[np.float32]:
    """Run the mean-field iterations: label probabilities, float32 [P, L], rows of sum 1.

    Args:
        labels: initial label of each pixel, int32 [P], 0..n_labels - 1.
        n_labels: L, at least 2.
        kernels: pairwise kernels of the image.
        settings: number of iterations and `confidence`.
    """
    odds = np.float32(np.log(settings.confidence * (n_labels - 1) / (1 - settings.confidence)))
    q = np.zeros((len(labels), n_labels), dtype=np.float32)
    _to_probabilities(q, labels, odds)
    for _ in range(settings.iterations):
        q = kernels.messages(q)
        _to_probabilities(q, labels, odds)
    return q


def _normalized(features: NDArray[np.float32], weight: float) -> PermutohedralLattice:
    """Build the lattice of features float32 [P, d], normalized symmetrically and weighted."""
    lattice = PermutohedralLattice.from_points(features)
    mass = lattice.filter(np.ones((len(features), 1), dtype=np.float32))[:, 0]
    return lattice.weighted(np.sqrt(np.float32(weight) / mass))


def _to_probabilities(messages: NDArray[np.float32], labels: NDArray[np.int32], odds: np.float32) -> None:
    """Turn messages [P, L] into label probabilities in place: add the unary term, then softmax."""
    _add_unary(messages, labels, odds)
    np.exp(messages, out=messages)
    _normalize_rows(messages)


@numba.njit(cache=True, nogil=True)
def _add_unary(messages: NDArray[np.float32], labels: NDArray[np.int32], odds: np.float32) -> None:
    """Add `odds` to each pixel's own label, and shift rows to a maximum of 0."""
    for p in range(messages.shape[0]):
        messages[p, labels[p]] += odds
        largest = messages[p, 0]
        for c in range(1, messages.shape[1]):
            largest = max(largest, messages[p, c])
        for c in range(messages.shape[1]):
            messages[p, c] -= largest


@numba.njit(cache=True, nogil=True, fastmath=True)
def _normalize_rows(values: NDArray[np.float32]) -> None:
    for p in range(values.shape[0]):
        total = np.float32(0)
        for c in range(values.shape[1]):
            total += values[p, c]
        for c in range(values.shape[1]):
            values[p, c] /= total
