"""Dense CRF: many masks of an image labeled anew so that near and similarly colored pixels agree.

    Q_i(l) ~ exp(-U_i(l) + sum over kernels m, pixels j of  w_m k_m(i, j) Q_j(l)),   iterated from Q ~ exp(-U)

Masks that do not overlap share one multi-label problem, a layer, whose label 0 is everything else; so masks compete for
pixels with their neighbors, and one lattice, built once an image, serves all. U is the same at all pixels of a mask: its own
label has probability `confidence`, the others share the rest. k_1 is a Gaussian of the distance, k_2 of distance and color, both
normalized symmetrically, k(i, j) / sqrt(sum_j k(i, j) sum_i k(i, j)); as in the authors' code a pixel also hears itself.

Source: Krahenbuhl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011; the
settings are CutLER's and UnSAM's, with hard labels.
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
    """The energy and the inference.

    Args:
        iterations: of the mean field.
        confidence: probability of a pixel's own label before it hears the others.
        gaussian_weight: w_1.
        gaussian_px: standard deviation of k_1.
        bilateral_weight: w_2.
        bilateral_px: standard deviation of k_2 over pixels.
        bilateral_rgb: standard deviation of k_2 over each color channel, of 255.
        shared_share: two masks may be in one layer when they share at most this share of the smaller one's pixels, which gets them.
        max_labels: labels of a layer, background included, which bounds the memory: about 20 bytes a pixel and label.
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
    """The two kernels of one image, normalized and weighted.

    Args:
        gaussian: w_1 k_1 over the image's pixels in raster order.
        bilateral: w_2 k_2.
    """

    gaussian: PermutohedralLattice
    bilateral: PermutohedralLattice

    @classmethod
    def from_pixels(cls, pixels: NDArray[np.uint8], settings: CrfSettings) -> PairwiseKernels:
        """Build both lattices for an RGB image, uint8 [H, W, 3]."""
        height, width = pixels.shape[:2]
        y, x = np.mgrid[:height, :width]
        place = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
        color = pixels.reshape(-1, 3).astype(np.float32) / np.float32(settings.bilateral_rgb)
        place_and_color = np.concatenate([place / np.float32(settings.bilateral_px), color], axis=1)
        return cls(
            _normalized(place / np.float32(settings.gaussian_px), settings.gaussian_weight),
            _normalized(place_and_color, settings.bilateral_weight),
        )

    def messages(self, q: NDArray[np.float32]) -> NDArray[np.float32]:
        """What each pixel hears from all, float32 [P, L], given the label probabilities float32 [P, L]."""
        heard = self.bilateral.filter(q)
        heard += self.gaussian.filter(q)
        return heard


def crf_masks(masks: PackedMasks, pixels: NDArray[np.uint8], settings: CrfSettings | None = None) -> PackedMasks:
    """Refine masks by one mean field a layer.

    Args:
        masks: N masks, in any order: the result does not depend on it.
        pixels: RGB image, uint8 [H, W, 3].
        settings: see `CrfSettings`.

    Returns:
        The N masks, refined, in the same order; some may be empty. Masks of one layer are disjoint.
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
    """Put each mask, the largest first, into the first layer with room whose masks it does not overlap.

    Args:
        masks: N masks in any order; masks of equal area are told apart by their pixels.
        shared_share: a smaller overlap, as a share of the smaller mask, is overlooked.
        max_masks: of one layer.

    Returns:
        The indices of each layer's masks, the largest first; every mask is in one layer.
    """
    areas, shared = masks.areas(), masks.intersections()
    apart = shared <= shared_share * np.minimum(areas[:, None], areas)
    layers: list[list[int]] = []
    for i in sorted(range(len(masks)), key=lambda i: (-areas[i], masks.bits[i].tobytes())):
        fitting = (layer for layer in layers if len(layer) < max_masks and apart[i, layer].all())
        layer = next(fitting, None)
        if layer is None:
            layers.append([i])
        else:
            layer.append(i)
    return [np.array(layer, dtype=np.int64) for layer in layers]


def mean_field(
    labels: NDArray[np.int32], n_labels: int, kernels: PairwiseKernels, settings: CrfSettings
) -> NDArray[np.float32]:
    """Iterate the mean field.

    Args:
        labels: the label of each pixel before, int32 [P], 0..n_labels - 1.
        n_labels: L, at least 2.
        kernels: the image's kernels.
        settings: see `CrfSettings`.

    Returns:
        The probability of each label at each pixel, float32 [P, L]; rows sum to 1.
    """
    odds = np.float32(np.log(settings.confidence * (n_labels - 1) / (1 - settings.confidence)))
    q = np.zeros((len(labels), n_labels), dtype=np.float32)
    _to_probabilities(q, labels, odds)
    for _ in range(settings.iterations):
        q = kernels.messages(q)
        _to_probabilities(q, labels, odds)
    return q


def _normalized(features: NDArray[np.float32], weight: float) -> PermutohedralLattice:
    lattice = PermutohedralLattice.from_points(features)
    mass = lattice.filter(np.ones((len(features), 1), dtype=np.float32))[:, 0]
    return lattice.weighted(np.sqrt(np.float32(weight) / mass))


def _to_probabilities(heard: NDArray[np.float32], labels: NDArray[np.int32], odds: np.float32) -> None:
    """Turn messages [P, L] into label probabilities in place: add the unary term, then softmax."""
    _add_unary(heard, labels, odds)
    np.exp(heard, out=heard)
    _normalize_rows(heard)


@numba.njit(cache=True, nogil=True)
def _add_unary(heard: NDArray[np.float32], labels: NDArray[np.int32], odds: np.float32) -> None:
    """Raise each pixel's own label by `odds` and shift rows so that their largest is 0."""
    for p in range(heard.shape[0]):
        heard[p, labels[p]] += odds
        largest = heard[p, 0]
        for c in range(1, heard.shape[1]):
            largest = max(largest, heard[p, c])
        for c in range(heard.shape[1]):
            heard[p, c] -= largest


@numba.njit(cache=True, nogil=True, fastmath=True)
def _normalize_rows(values: NDArray[np.float32]) -> None:
    for p in range(values.shape[0]):
        total = np.float32(0)
        for c in range(values.shape[1]):
            total += values[p, c]
        for c in range(values.shape[1]):
            values[p, c] /= total
