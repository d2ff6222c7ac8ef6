"""Targets of a crop: masks cropped like pixels, and a forest with the ancestors of the whole one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_sets import random_forest, random_masks, record_of

from sohes_cli.data.config import DataConfig
from sohes_cli.data.jitter import Crop, draw_crop, full_crop
from sohes_cli.data.targets import choose_labels, crop_targets, prune_forest
from sohes_cli.errors import StoreError
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.resample import resample_runs
from sohes_cli.masks.segmentations import parse_segmentations
from sohes_cli.structures import Forest, LabelRecord

if TYPE_CHECKING:
    from sohes_kernels import RunMasks

SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def crops(draw: st.DrawFn) -> Crop:
    """A window anywhere in a small photograph, enlarged or reduced."""
    height, width, scaled_height, scaled_width = (draw(st.integers(1, 40)) for _ in range(4))
    h, w = draw(st.integers(1, scaled_height)), draw(st.integers(1, scaled_width))
    top, left = draw(st.integers(0, scaled_height - h)), draw(st.integers(0, scaled_width - w))
    return Crop(height, width, scaled_height, scaled_width, top, left, h, w, draw(st.booleans()))


def record_for(crop: Crop, n: int, rng: np.random.Generator) -> tuple[LabelRecord, np.ndarray]:
    """A record of random masks and forest for the photograph of a crop, and the masks, bool [n, H, W]."""
    masks = random_masks(n, crop.source_height, crop.source_width, rng)
    return record_of(masks, random_forest(n, rng), rng.random(n)), masks


def indexed(masks: np.ndarray, crop: Crop) -> np.ndarray:
    return masks[:, crop.rows][:, :, crop.columns]


def packed(masks: np.ndarray) -> np.ndarray:
    """Bits of masks bool [N, H, W], column by column."""
    n, height, width = masks.shape
    return np.packbits(masks.transpose(0, 2, 1).reshape(n, height * width), axis=1, bitorder="little")


def cropped_runs(record: LabelRecord, crop: Crop) -> RunMasks:
    masks, _ = parse_segmentations([a.segmentation for a in record.annotations], record.height, record.width)
    return resample_runs(masks, crop.rows, crop.columns)


def ancestor_matrix(parents: np.ndarray) -> np.ndarray:
    """Return the matrix [i, j] that is true if i is an ancestor of j, bool [N, N]."""
    matrix = np.zeros((len(parents), len(parents)), np.bool_)
    for j, chain in enumerate(map(Forest(tuple(parents.tolist())).ancestors, range(len(parents)))):
        matrix[chain, j] = True
    return matrix


# Masks


@settings(max_examples=100, deadline=None)
@given(crop=crops(), seed=SEEDS)
def test_masks_and_pixels_are_transformed_alike(crop: Crop, seed: int) -> None:
    """At the photograph's own size a crop of an image whose channels are three masks shows the crops of the masks."""
    crop = replace(crop, source_height=crop.scaled_height, source_width=crop.scaled_width)
    record, masks = record_for(crop, 3, np.random.default_rng(seed))
    pixels = crop.cut(np.ascontiguousarray(masks.transpose(1, 2, 0)).astype(np.uint8))
    assert np.array_equal(
        packed(pixels.transpose(2, 0, 1).astype(np.bool_)), PackedMasks.from_runs(cropped_runs(record, crop)).to_bytes()
    )


# The forest


@settings(max_examples=200, deadline=None)
@given(n=st.integers(0, 30), seed=SEEDS)
def test_ancestors_among_kept_labels_stay_what_they_were(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents = random_forest(n, rng)
    kept = rng.permutation(n)[: rng.integers(n + 1)]
    pruned = prune_forest(parents, kept)
    assert np.array_equal(ancestor_matrix(pruned), ancestor_matrix(parents)[np.ix_(kept, kept)])


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 40), at_most=st.integers(1, 40), seed=SEEDS)
def test_chosen_labels_come_with_their_ancestors(n: int, at_most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parents, order = random_forest(n, rng), rng.permutation(n)
    chosen = choose_labels(parents, order, at_most)
    assert len(chosen) <= at_most
    assert (np.diff(chosen) > 0).all()
    assert all(parents[i] < 0 or parents[i] in chosen for i in chosen)
    depths = ancestor_matrix(parents).sum(0) + 1  # labels that each one asks for
    asked = [i for i in order if depths[i] <= at_most]
    assert asked[0] in chosen  # there is a root among them
    if n <= at_most:
        assert len(chosen) == n


def test_chains_that_do_not_fit_are_passed_over() -> None:
    parents = np.array([-1, 0, 1, 2, -1, 4])  # a chain of four and one of two
    assert choose_labels(parents, np.array([3, 5, 0, 1, 2, 4]), 3).tolist() == [0, 4, 5]
    assert choose_labels(parents, np.array([5, 3, 1, 0, 2, 4]), 4).tolist() == [0, 1, 4, 5]


def test_labels_without_ancestors_are_chosen_alike() -> None:
    rng, counts = np.random.default_rng(0), np.zeros(20)
    for _ in range(3000):
        counts[choose_labels(np.full(20, -1), rng.permutation(20), 5)] += 1
    assert counts.sum() == 15000
    assert np.abs(counts - 750).max() < 5 * np.sqrt(3000 * 0.25 * 0.75)


# Both


@settings(max_examples=300, deadline=None)
@given(crop=crops(), n=st.integers(0, 8), min_area=st.integers(1, 30), min_visible=st.floats(0, 1), seed=SEEDS)
def test_targets_are_the_labels_that_are_large_enough(
    crop: Crop, n: int, min_area: int, min_visible: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    record, masks = record_for(crop, n, rng)
    found, parents = crop_targets(record, crop, DataConfig(min_area_px=min_area, min_visible=min_visible), rng)
    expected = indexed(masks, crop)
    scale = crop.scaled_height * crop.scaled_width / (crop.source_height * crop.source_width)
    areas = expected.sum((1, 2))
    kept = np.flatnonzero((areas >= min_area) & (areas >= min_visible * scale * masks.sum((1, 2))))
    assert found.dtype == torch.uint8
    assert parents.dtype == torch.int64
    assert np.array_equal(found.numpy(), packed(expected[kept]))
    whole = ancestor_matrix(np.array(record.forest.parents, np.int64))
    assert np.array_equal(ancestor_matrix(parents.numpy()), whole[np.ix_(kept, kept)])


@settings(max_examples=100, deadline=None)
@given(crop=crops(), at_most=st.integers(1, 6), choice=st.sampled_from(["best", "random"]), seed=SEEDS)
def test_at_most_so_many_targets_all_of_the_record(crop: Crop, at_most: int, choice: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    record, masks = record_for(crop, 12, rng)
    found, _ = crop_targets(
        record, crop, DataConfig(max_labels=at_most, min_area_px=1, min_visible=0.0, label_choice=choice), rng
    )
    rows = {row.tobytes() for row in packed(indexed(masks, crop))}
    assert len(found) <= at_most
    assert all(row.tobytes() in rows for row in found.numpy())


def test_the_best_labels_are_taken_without_a_generator() -> None:
    masks = np.zeros((6, 10, 60), np.bool_)
    for i in range(6):
        masks[i, :, 10 * i : 10 * (i + 1)] = True
    record = record_of(masks, np.full(6, -1), np.array([0.1, 0.9, 0.5, 0.9, 0.2, 0.8]))
    config = DataConfig(image_size=64, max_labels=3, min_area_px=1)
    crop = full_crop(10, 60, 64)
    found, _ = crop_targets(record, crop, config, None)
    assert np.array_equal(found.numpy(), packed(indexed(masks, crop))[[1, 3, 5]])


def test_the_best_labels_are_taken_whatever_the_generator_says() -> None:
    masks = np.zeros((6, 10, 60), np.bool_)
    for i in range(6):
        masks[i, :, 10 * i : 10 * (i + 1)] = True
    record = record_of(masks, np.full(6, -1), np.array([0.1, 0.9, 0.5, 0.5, 0.5, 0.8]))
    crop, whole = full_crop(10, 60, 64), packed(indexed(masks, full_crop(10, 60, 64)))
    taken: dict[str, set[int]] = {"best": set(), "random": set()}
    for choice, seed in product(taken, range(40)):
        config = DataConfig(image_size=64, max_labels=3, min_area_px=1, label_choice=choice)
        found = crop_targets(record, crop, config, np.random.default_rng(seed))[0].numpy()
        rows = {i for i in range(6) if (found == whole[i]).all(1).any()}
        assert len(rows) == 3
        assert choice == "random" or {1, 5} < rows
        taken[choice] |= rows
    assert taken == {"best": {1, 2, 3, 4, 5}, "random": set(range(6))}  # of the same score, others each time


def test_labels_out_of_view_take_no_place() -> None:
    """A hundred labels, of which the crop shows five: these are found, although only five may be."""
    masks = np.zeros((100, 10, 1000), np.bool_)
    for i in range(100):
        masks[i, :, 10 * i : 10 * (i + 1)] = True
    record = record_of(masks, np.full(100, -1), np.ones(100))
    crop = Crop(10, 1000, 10, 1000, 0, 200, 10, 50)
    found, _ = crop_targets(record, crop, DataConfig(max_labels=5), np.random.default_rng(0))
    assert np.array_equal(found.numpy(), packed(indexed(masks, crop))[20:25])


def test_a_part_of_what_is_cropped_away_belongs_to_the_whole() -> None:
    masks = np.zeros((3, 40, 40), np.bool_)
    masks[0], masks[1, :, :30], masks[2, 5:15, 20:28] = True, True, True
    record = record_of(masks, np.array([-1, 0, 1]), np.ones(3))
    crop = Crop(40, 40, 40, 40, 0, 20, 40, 20)  # half of the first, a third of the second, all of the third
    _, parents = crop_targets(record, crop, DataConfig(min_visible=0.3), np.random.default_rng(0))
    assert parents.tolist() == [-1, 0, 1]
    _, parents = crop_targets(record, crop, DataConfig(min_visible=0.4), np.random.default_rng(0))
    assert parents.tolist() == [-1, 0]


def test_a_record_without_labels_has_no_targets() -> None:
    crop = draw_crop(30, 50, DataConfig(image_size=64), np.random.default_rng(0))
    masks, parents = crop_targets(LabelRecord("a.png", 30, 50), crop, DataConfig(), np.random.default_rng(0))
    assert masks.shape == (0, -(-crop.height * crop.width // 8))
    assert parents.shape == (0,)
    assert (masks.dtype, parents.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize("counts", ["", "?", "11", "ü", "\ud800", "PPPPPPPPPPPP1"])
def test_a_damaged_mask_is_named(counts: str) -> None:
    record = record_of(np.ones((3, 20, 20), np.bool_), np.full(3, -1), np.ones(3), "sub/a\nb.png")
    annotations = list(record.annotations)
    annotations[1] = replace(annotations[1], segmentation={"size": [20, 20], "counts": counts})
    damaged = replace(record, annotations=tuple(annotations))
    with pytest.raises(StoreError, match=r"sub/a\\nb.png are damaged: annotation 2: its run-length string is damaged"):
        crop_targets(damaged, full_crop(20, 20, 64), DataConfig(), np.random.default_rng(0))
