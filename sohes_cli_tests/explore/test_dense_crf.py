"""The dense CRF against sums over all pairs of pixels, and what a mean field must do to masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes_cli.explore.dense_crf import CrfSettings, PairwiseKernels, crf_masks, disjoint_layers, mean_field
from sohes_cli.explore.permutohedral import PermutohedralLattice
from sohes_cli.masks.packed import PackedMasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEIGHT, WIDTH = 30, 38
SMALL = CrfSettings(bilateral_px=10.0, bilateral_rgb=20.0)  # the same energy for an image of a tenth of the size


def photograph(seed: int = 0, noise: float = 8.0) -> NDArray[np.uint8]:
    """A disc and a bar on a ramp, with noise, uint8 [30, 38, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([60 + 2 * x, 80 + y, 150 - x], axis=-1).astype(float)
    pixels[(y - 12) ** 2 + (x - 12) ** 2 < 49] = [200, 60, 50]
    pixels[8:26, 26:32] = [40, 170, 60]
    pixels += np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def two_squares() -> NDArray[np.int32]:
    """Labels that miss the disc and the bar by a few pixels, int32 [30, 38]."""
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    labels[7:19, 4:18] = 1
    labels[8:24, 24:32] = 2
    return labels


# The readable reference: every pair of pixels, in float64


def all_pairs(features: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """w k(i, j) / sqrt(sum_j k(i, j) sum_i k(i, j)) with k = exp(-|f_i - f_j|^2 / 2), float64 [P, P]."""
    kernel = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(axis=-1))
    mass = kernel.sum(axis=1)
    return weight * kernel / np.sqrt(mass[:, None] * mass[None])


class AllPairs:
    """`PairwiseKernels` without a lattice."""

    def __init__(self, pixels: NDArray[np.uint8], s: CrfSettings) -> None:
        y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        place = np.stack([x, y], axis=-1).reshape(-1, 2).astype(float)
        color = pixels.reshape(-1, 3).astype(float)
        self.kernel = all_pairs(place / s.gaussian_px, s.gaussian_weight)
        self.kernel += all_pairs(
            np.concatenate([place / s.bilateral_px, color / s.bilateral_rgb], axis=1), s.bilateral_weight
        )

    def messages(self, q: NDArray[Any]) -> NDArray[np.float32]:
        return (self.kernel @ q).astype(np.float32)


def mean_field_plainly(
    labels: NDArray[np.int32], n_labels: int, kernel: NDArray[np.float64], s: CrfSettings
) -> NDArray[np.float64]:
    """The mean field as the paper writes it: unary energies, messages, Potts compatibility, float64 [P, L]."""
    share = np.full((labels.size, n_labels), (1 - s.confidence) / (n_labels - 1))
    share[np.arange(labels.size), labels.ravel()] = s.confidence
    unary, potts = -np.log(share), 1 - np.eye(n_labels)
    q = np.exp(-unary)
    for _ in range(s.iterations):
        q = np.exp(-unary - (kernel @ q) @ potts)
        q /= q.sum(axis=1, keepdims=True)
    return q


# The lattice


@pytest.mark.parametrize(("d", "spread"), [(1, 3.0), (2, 3.0), (3, 2.0), (5, 2.5)])
def test_lattice_filters_like_the_gaussian(d: int, spread: float) -> None:
    rng = np.random.default_rng(d)
    features = (spread * rng.random((500, d))).astype(np.float32)
    values = (features[:, :1] > spread * np.array([0.3, 0.5, 0.7])).astype(np.float32)
    lattice = PermutohedralLattice.from_points(features)
    mass = lattice.filter(np.ones((500, 1), dtype=np.float32))
    filtered = lattice.weighted(1 / np.sqrt(mass[:, 0])).filter(values)
    expected = all_pairs(features.astype(float), 1.0) @ values
    assert np.abs(filtered - expected).mean() < 0.03
    assert np.corrcoef(filtered[:, 1], expected[:, 1])[0, 1] > 0.99


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 60), st.floats(0.01, 100), st.integers(0, 100))
def test_lattice_weights_locate_the_point(d: int, n: int, spread: float, seed: int) -> None:
    features = (spread * np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)
    lattice = PermutohedralLattice.from_points(features)
    assert (lattice.weights >= -1e-4).all()
    np.testing.assert_allclose(lattice.weights.sum(axis=1), 1, atol=1e-4)
    assert lattice.corners.min() == 0
    assert lattice.corners.max() + 1 == lattice.neighbors.shape[1]
    steps = lattice.neighbors
    for direction in range(d + 1):  # the corner after the corner before is the corner itself
        before = steps[direction, :, 0]
        known = np.flatnonzero(before < steps.shape[1])
        np.testing.assert_array_equal(steps[direction, before[known], 1], known)


def test_lattice_is_linear_and_keeps_channels_apart() -> None:
    rng = np.random.default_rng(0)
    lattice = PermutohedralLattice.from_points((2 * rng.random((200, 5))).astype(np.float32))
    a, b = rng.random((2, 200, 4)).astype(np.float32)
    np.testing.assert_allclose(lattice.filter(a + 2 * b), lattice.filter(a) + 2 * lattice.filter(b), rtol=1e-4)
    together = lattice.filter(np.concatenate([a, b[:, :1]], axis=1))
    np.testing.assert_allclose(
        together, np.concatenate([lattice.filter(a), lattice.filter(b[:, :1])], axis=1), rtol=1e-5
    )


def test_far_points_do_not_hear_each_other() -> None:
    lattice = PermutohedralLattice.from_points(np.array([[0, 0], [100, 0], [100.2, 0]], dtype=np.float32))
    heard = lattice.filter(np.eye(3, dtype=np.float32))
    assert heard[0, 1] == heard[1, 0] == 0
    assert heard[1, 2] > 0.5 * heard[1, 1]


# The mean field


@pytest.mark.parametrize("seed", range(3))
def test_update_equals_the_reference_with_exact_kernels(seed: int) -> None:
    exact, labels = AllPairs(photograph(seed), SMALL), two_squares()
    for iterations in (1, 3):
        s = CrfSettings(iterations=iterations, bilateral_px=10.0, bilateral_rgb=20.0)
        q = mean_field(labels.ravel(), 3, exact, s)  # type: ignore[arg-type]
        np.testing.assert_allclose(q, mean_field_plainly(labels, 3, exact.kernel, s), atol=2e-4)


def test_kernels_weigh_as_much_as_asked() -> None:
    """Unanimous messages sum to about the kernel's weight, in spite of the lattice's errors in single pairs."""
    pixels = photograph()
    s = CrfSettings(gaussian_weight=3.0, bilateral_weight=5.0, bilateral_px=10.0, bilateral_rgb=20.0)
    kernels, agreement = PairwiseKernels.from_pixels(pixels, s), np.ones((HEIGHT * WIDTH, 1), dtype=np.float32)
    exact = AllPairs(pixels, s).kernel.sum(axis=1).mean()
    gaussian, bilateral = kernels.gaussian.filter(agreement).mean(), kernels.bilateral.filter(agreement).mean()
    assert gaussian == pytest.approx(3.0, rel=0.03)
    assert bilateral == pytest.approx(5.0, rel=0.03)
    assert kernels.messages(agreement).mean() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rgb", [20.0, 5.0])
def test_lattice_mean_field_is_near_the_reference(seed: int, rgb: float) -> None:
    """The lattice's kernel is off by some 5% a pair, so undecided pixels move; the mean and the labels must not."""
    pixels, labels = photograph(seed), two_squares()
    for iterations, mean_gap, agreeing in ((1, 0.006, 0.98), (10, 0.004, 0.99)):
        s = CrfSettings(iterations=iterations, bilateral_px=10.0, bilateral_rgb=rgb)
        expected = mean_field_plainly(labels, 3, AllPairs(pixels, s).kernel, s)
        q = mean_field(labels.ravel(), 3, PairwiseKernels.from_pixels(pixels, s), s)
        np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)
        assert np.abs(q - expected).mean() < mean_gap
        assert (q.argmax(axis=1) == expected.argmax(axis=1)).mean() > agreeing


# The masks


def refined(masks: NDArray[np.bool_], pixels: NDArray[np.uint8], s: CrfSettings | None = None) -> NDArray[np.bool_]:
    return np.stack(list(crf_masks(PackedMasks.from_masks(masks), pixels, s)))


def test_a_lone_pixel_takes_the_label_around_it() -> None:
    clean = np.zeros((1, 40, 50), dtype=bool)
    clean[0, :, 25:] = True
    noisy = clean.copy()
    noisy[0, 20, 8], noisy[0, 11, 40] = True, False
    np.testing.assert_array_equal(refined(noisy, np.full((40, 50, 3), 128, dtype=np.uint8)), clean)


@pytest.mark.parametrize("offset", [-3, 3])
def test_a_misaligned_mask_moves_to_the_edge(offset: int) -> None:
    true = np.zeros((1, 40, 50), dtype=bool)
    true[0, :, 25:] = True
    moved = np.zeros_like(true)
    moved[0, :, 25 + offset :] = True
    pixels = np.where(true[0, ..., None], [180, 120, 60], [90, 110, 130]).astype(np.uint8)
    np.testing.assert_array_equal(refined(moved, pixels), true)


def test_two_shapes_become_what_they_stand_for() -> None:
    labels, pixels = two_squares(), photograph(noise=3)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc, bar = (y - 12) ** 2 + (x - 12) ** 2 < 49, (x >= 26) & (x < 32) & (y >= 8) & (y < 26)
    masks = np.stack([labels == 1, labels == 2])
    s = CrfSettings(gaussian_weight=1.0, bilateral_px=10.0, bilateral_rgb=20.0)
    after = refined(masks, pixels, s)
    for true, before, now in zip((disc, bar), masks, after, strict=True):
        assert (now != true).sum() < 0.2 * (before != true).sum()
    assert not (after[0] & after[1]).any()


def nested_masks(seed: int, n: int = 14) -> NDArray[np.bool_]:
    """Boxes of every size at random places, some of them equal in area, bool [N, 30, 38]."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, HEIGHT, WIDTH), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, 20), rng.integers(0, 28)
        mask[top : top + rng.integers(4, 12), left : left + rng.integers(4, 12)] = True
    return masks


@pytest.mark.parametrize("seed", range(3))
def test_order_of_masks_does_not_matter(seed: int) -> None:
    masks, pixels = nested_masks(seed), photograph(seed)
    order = np.random.default_rng(seed).permutation(len(masks))
    after = refined(masks, pixels, SMALL)
    assert (after != masks).any()
    np.testing.assert_array_equal(refined(masks[order], pixels, SMALL), after[order])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from([0.0, 0.02, 0.3]))
def test_layers_are_disjoint_and_complete(seed: int, max_masks: int, shared_share: float) -> None:
    masks = PackedMasks.from_masks(nested_masks(seed))
    layers = disjoint_layers(masks, shared_share, max_masks)
    assert sorted(np.concatenate(layers).tolist()) == list(range(len(masks)))
    areas, shared = masks.areas(), masks.intersections()
    for layer in layers:
        assert len(layer) <= max_masks
        assert (np.diff(areas[layer]) <= 0).all()
        for a in layer:
            assert all(shared[a, b] <= shared_share * min(areas[a], areas[b]) for b in layer if b != a)


def test_a_small_overlap_goes_to_the_smaller_mask() -> None:
    masks = np.zeros((2, 40, 50), dtype=bool)
    masks[0, :, :30] = True
    masks[1, 5:35, 29:48] = True  # shares 30 of its 570 pixels
    pixels = np.full((40, 50, 3), 128, dtype=np.uint8)
    s = CrfSettings(iterations=0, shared_share=0.1)
    after = refined(masks, pixels, s)
    np.testing.assert_array_equal(after[1], masks[1])
    np.testing.assert_array_equal(after[0], masks[0] & ~masks[1])
    np.testing.assert_array_equal(refined(masks, pixels, CrfSettings(iterations=0)), masks)
