"""Refinement as a step: the rules of every method, filled holes, superpixels and the protocol of CascadePSP."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mask_cases import unpacked

from sohes_cli.errors import SohesError
from sohes_cli.explore.cascade_psp import load_refiner
from sohes_cli.explore.config import RefinementConfig
from sohes_cli.explore.refinement import refine
from sohes_cli.explore.superpixels import superpixels
from sohes_cli.masks.packed import PackedMasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

METHODS = ["guided", "superpixels", "crf"]


def shapes(height: int = 53, width: int = 61) -> NDArray[np.bool_]:
    """A disc, a box and a tower, bool [3, H, W]; the sizes are no multiples of a word."""
    y, x = np.mgrid[:height, :width]
    disc, box, tower = (
        (y - 18) ** 2 + (x - 20) ** 2 < 150,
        (y >= 30) & (y < 50) & (x >= 8) & (x < 30),
        (y >= 5) & (y < 45) & (x >= 42) & (x < 56),
    )
    return np.stack([disc, box & ~disc, tower])


def photograph() -> NDArray[np.uint8]:
    """The shapes in three colors on gray, with noise, uint8 [53, 61, 3]."""
    pixels = np.full((53, 61, 3), 120.0)
    for shape, color in zip(shapes(), ([210, 60, 50], [40, 90, 190], [60, 180, 70]), strict=True):
        pixels[shape] = color
    return np.clip(pixels + np.random.default_rng(0).normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)


def rough_masks() -> NDArray[np.bool_]:
    """Each shape moved by 0 to 6 pixels, one with a hole, then a single pixel and an empty mask, bool [14, 53, 61]."""
    moved = [np.roll(shape, (step, -step), axis=(0, 1)) for step in (0, 2, 4, 6) for shape in shapes()]
    moved[2][20:26, 46:50] = False
    masks = np.zeros((14, 53, 61), dtype=bool)
    masks[:12] = moved
    masks[12, 25, 35] = True
    return masks


def ious(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    return (a & b).sum(axis=(1, 2)) / np.maximum((a | b).sum(axis=(1, 2)), 1)


# Every method


def test_none_returns_the_masks_as_they_are() -> None:
    masks = PackedMasks.from_masks(rough_masks())
    same, indices = refine(masks, photograph(), RefinementConfig(method="none", min_iou=1.0))
    assert same is masks
    np.testing.assert_array_equal(indices, np.arange(len(masks)))


@pytest.mark.parametrize("method", METHODS)
def test_survivors_are_those_that_changed_little(method: str) -> None:
    masks = rough_masks()
    packed = PackedMasks.from_masks(masks)
    everything, all_indices = refine(packed, photograph(), RefinementConfig(method=method, min_iou=0.0))
    assert (everything.areas() > 0).all()
    assert 13 not in all_indices  # nothing is made of an empty mask
    similarity = ious(masks[all_indices], unpacked(everything))
    for min_iou in np.quantile(similarity, [0.3, 0.5, 0.8], method="nearest"):
        after, indices = refine(packed, photograph(), RefinementConfig(method=method, min_iou=float(min_iou)))
        assert 0 < len(indices) < len(all_indices)
        assert indices.dtype == np.int64
        np.testing.assert_array_equal(indices, all_indices[similarity >= min_iou])
        np.testing.assert_array_equal(unpacked(after), unpacked(everything)[similarity >= min_iou])
    np.testing.assert_array_equal(unpacked(packed), masks)


@pytest.mark.parametrize("method", METHODS)
def test_masks_come_nearer_to_the_shapes(method: str) -> None:
    rough = np.roll(shapes(), (2, 2), axis=(1, 2))
    after, indices = refine(PackedMasks.from_masks(rough), photograph(), RefinementConfig(method=method))
    np.testing.assert_array_equal(indices, [0, 1, 2])
    assert (ious(unpacked(after), shapes()) > ious(rough, shapes()) + 0.05).all()


@pytest.mark.parametrize("method", METHODS)
def test_order_of_masks_does_not_matter(method: str) -> None:
    masks, config = rough_masks(), RefinementConfig(method=method)
    order = np.random.default_rng(1).permutation(len(masks))
    after, indices = refine(PackedMasks.from_masks(masks), photograph(), config)
    permuted, origins = refine(PackedMasks.from_masks(masks[order]), photograph(), config)
    back = np.argsort(order[origins])
    np.testing.assert_array_equal(order[origins][back], indices)
    np.testing.assert_array_equal(permuted.bits[back], after.bits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3)])
def test_tiny_images(method: str, height: int, width: int) -> None:
    masks = np.ones((2, height, width), dtype=bool)
    pixels = np.full((height, width, 3), 77, dtype=np.uint8)
    after, indices = refine(PackedMasks.from_masks(masks), pixels, RefinementConfig(method=method))
    np.testing.assert_array_equal(indices, [0, 1])
    assert unpacked(after).all()


@pytest.mark.parametrize("method", ["none", *METHODS, "cascadepsp"])
def test_no_masks(method: str) -> None:
    nothing = PackedMasks.from_masks(np.zeros((0, 53, 61), dtype=bool))
    after, indices = refine(nothing, photograph(), RefinementConfig(method=method))
    assert len(after) == len(indices) == 0


# Holes


@pytest.mark.parametrize("fill", [True, False])
def test_holes_are_filled_only_when_asked(fill: bool) -> None:
    units = np.arange(49, dtype=np.int32).reshape(7, 7)
    ring = np.zeros((1, 7, 7), dtype=bool)
    ring[0, 1:6, 1:6] = True
    ring[0, 3, 3] = False
    config = RefinementConfig(method="superpixels", fill_holes=fill)
    after, _ = refine(PackedMasks.from_masks(ring), np.zeros((7, 7, 3), dtype=np.uint8), config, units)
    assert unpacked(after)[0, 3, 3] == fill
    assert after.areas()[0] == 24 + fill


# Superpixels


def test_given_superpixels_are_used_and_own_ones_made() -> None:
    masks, pixels, config = PackedMasks.from_masks(rough_masks()), photograph(), RefinementConfig(method="superpixels")
    own, own_indices = refine(masks, pixels, config)
    same, same_indices = refine(masks, pixels, config, superpixels(pixels, scale=20, min_area_px=20))
    np.testing.assert_array_equal(own.bits, same.bits)
    np.testing.assert_array_equal(own_indices, same_indices)
    each_pixel = np.arange(53 * 61, dtype=np.int32).reshape(53, 61)
    unchanged, _ = refine(masks, pixels, RefinementConfig(method="superpixels", fill_holes=False), each_pixel)
    np.testing.assert_array_equal(unpacked(unchanged), rough_masks()[:-1])


# CascadePSP


class FakeRefiner:
    """Records its arguments; returns 128 / 255 in the mask moved right by a pixel, 127 / 255 elsewhere."""

    made: list[FakeRefiner]

    def __init__(self, device: str) -> None:
        self.device = device
        self.calls: list[tuple[NDArray[np.uint8], NDArray[np.uint8], bool, int]] = []
        FakeRefiner.made.append(self)

    def refine(self, image: NDArray[np.uint8], mask: NDArray[np.uint8], fast: bool, L: int) -> NDArray[np.uint8]:
        self.calls.append((image, mask, fast, L))
        return np.where(np.roll(mask, 1, axis=1) > 127, 128, 127).astype(np.uint8)


@pytest.fixture
def forgotten_refiners() -> Iterator[None]:
    load_refiner.cache_clear()
    FakeRefiner.made = []
    yield
    load_refiner.cache_clear()


def package(refiner: Any) -> ModuleType:
    module = ModuleType("segmentation_refinement")
    module.Refiner = refiner  # type: ignore[attr-defined]
    return module


@pytest.mark.usefixtures("forgotten_refiners")
def test_cascade_psp_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_refinement", None)
    with pytest.raises(SohesError, match="segmentation-refinement") as caught:
        refine(PackedMasks.from_masks(rough_masks()), photograph(), RefinementConfig(method="cascadepsp"))
    assert "pip install 'sohes[cascadepsp]'" in caught.value.hint


@pytest.mark.usefixtures("forgotten_refiners")
def test_cascade_psp_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(device: str) -> None:
        raise ConnectionError(f"no route to host from {device}")

    monkeypatch.setitem(sys.modules, "segmentation_refinement", package(unreachable))
    with pytest.raises(SohesError, match=r"259 MB.*no route to host"):
        refine(PackedMasks.from_masks(rough_masks()), photograph(), RefinementConfig(method="cascadepsp"))


@pytest.mark.usefixtures("forgotten_refiners")
def test_cascade_psp_is_called_as_its_package_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_refinement", package(FakeRefiner))
    masks, pixels = rough_masks(), photograph()
    config = RefinementConfig(method="cascadepsp", min_iou=0.3, fill_holes=False)
    for _ in range(2):
        after, indices = refine(PackedMasks.from_masks(masks), pixels, config)
    (refiner,) = FakeRefiner.made  # the network is loaded once
    assert refiner.device in ("cpu", "cuda:0")
    assert len(refiner.calls) == 2 * 13  # an empty mask needs no network
    for (image, given_mask, fast, longest), mask in zip(refiner.calls, masks[:-1], strict=False):
        np.testing.assert_array_equal(image, pixels)  # RGB, as the network was trained
        assert given_mask.dtype == np.uint8
        np.testing.assert_array_equal(given_mask, 255 * mask.astype(np.uint8))
        assert (fast, longest) == (False, 900)
    moved = np.roll(masks, 1, axis=2)
    np.testing.assert_array_equal(indices, np.flatnonzero(ious(masks, moved) >= 0.3))
    np.testing.assert_array_equal(unpacked(after), moved[indices])
