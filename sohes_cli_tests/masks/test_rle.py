"""Run-length strings: equal to pycocotools on every mask, and an error on every damaged string."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from sohes_cli.masks.rle import decode_mask, encode_runs, mask_extent, run_lengths

MASKS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 1))


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


@settings(deadline=None)  # the first example compiles
@given(MASKS)
def test_decoding_gives_the_encoded_pixels(mask):
    assert (decode_mask(encode(mask)) == mask).all()


@settings(deadline=None)  # the first example compiles
@given(MASKS)
def test_extent_is_that_of_pycocotools(mask):
    rle = encode(mask)
    area, box = mask_extent(rle)
    assert area == coco_mask.area(rle)
    assert list(box) == coco_mask.toBbox(rle).tolist()


def test_long_runs_use_several_characters():
    mask = np.zeros((700, 900), np.uint8)
    mask[100:650, 30:870] = 1
    assert (decode_mask(encode(mask)) == mask).all()
    assert mask_extent(encode(mask)) == (550 * 840, (30, 100, 840, 550))


@settings(deadline=None)  # the first example compiles
@given(MASKS, st.data())
def test_a_damaged_string_is_refused_or_still_fills_the_mask(mask, data):
    rle = encode(mask)
    at = data.draw(st.integers(0, len(rle["counts"]) - 1))
    rle["counts"] = rle["counts"][:at] + data.draw(st.characters()) + rle["counts"][at + 1 :]
    try:
        runs = run_lengths(rle)
    except ValueError:
        return
    assert runs.min() >= 0
    assert runs.sum() == mask.size
    assert decode_mask(rle).shape == mask.shape


@pytest.mark.parametrize("counts", ["", "é", "garbage!!", "\x00", "P", "c26>0", "oooooooooooooooooooo0"])
def test_strings_that_crash_or_confuse_pycocotools_are_refused(counts):
    with pytest.raises(ValueError, match="run-length string"):
        decode_mask({"size": [20, 30], "counts": counts})


def test_a_mask_of_another_size_is_refused():
    rle = encode(np.ones((4, 5), np.uint8))
    with pytest.raises(ValueError, match="does not fill 4 x 6 pixels"):
        run_lengths({"size": [4, 6], "counts": rle["counts"]})


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=12))
def test_encoded_runs_come_back(runs):
    for k in range(1, len(runs)):  # an empty run in the middle would join its neighbors
        runs[k] = max(runs[k], 1)
    assert run_lengths({"size": [1, sum(runs)], "counts": encode_runs(np.array(runs))}).tolist() == runs
