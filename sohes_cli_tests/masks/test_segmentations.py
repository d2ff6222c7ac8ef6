"""Masks in COCO's forms: equal to pycocotools, and a reason for every damaged one that does not affect the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sohes_cli.masks.rle import decode_mask, mask_extent
from sohes_cli.masks.segmentations import compressed, parse_segmentations

H, W = 7, 9
MASKS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 1))
TRIANGLE = [[1.0, 1.0, 6.0, 1.5, 3.0, 5.0]]


def encoded(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def listed(mask):
    """Uncompressed run lengths, the first one background."""
    flat = mask.T.reshape(-1)
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], borders, [flat.size]))).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def in_coco_string(runs):
    """Run lengths in COCO's characters, five bits each, zero-length ones included."""
    text = ""
    for k, run in enumerate(runs):
        number = run - runs[k - 2] if k > 2 else run
        while True:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def pixels(runs, n):
    """Mask n of `RunMasks`, uint8 [H, W]."""
    flat = np.zeros(runs.height * runs.width, np.uint8)
    for k in range(runs.offsets[n], runs.offsets[n + 1]):
        assert not flat[runs.starts[k] : runs.ends[k]].any()
        flat[runs.starts[k] : runs.ends[k]] = 1
    return flat.reshape(runs.width, runs.height).T


def is_joined(runs, n):
    """True if no two intervals of the mask touch."""
    kept = slice(runs.offsets[n], runs.offsets[n + 1])
    return bool((runs.ends[kept][:-1] < runs.starts[kept][1:]).all())


def sample(seed=0):
    return (np.random.default_rng(seed).random((H, W)) < 0.4).astype(np.uint8)


def read_one(segmentation, height=H, width=W):
    runs, reasons = parse_segmentations([segmentation], height, width)
    assert reasons == {}
    return pixels(runs, 0)


@settings(max_examples=150, deadline=None)
@given(MASKS, st.integers(0, 2**32 - 1))
def test_run_lengths_of_all_kinds_are_the_pixels_of_pycocotools(mask, seed):
    other = np.random.default_rng(seed).permuted(mask, axis=None)
    forms = [encoded(mask), listed(mask), encoded(other), {**encoded(mask), "counts": encoded(mask)["counts"].encode()}]
    runs, reasons = parse_segmentations(forms, *mask.shape)
    assert (reasons, len(runs), (runs.height, runs.width)) == ({}, 4, mask.shape)
    for n, expected in enumerate((mask, mask, other, mask)):
        np.testing.assert_array_equal(pixels(runs, n), expected)
        assert is_joined(runs, n)
    assert runs.areas().tolist() == [int(coco_mask.area(encoded(m))) for m in (mask, mask, other, mask)]
    assert compressed(listed(mask), *mask.shape) == encoded(mask)


@given(MASKS)
def test_the_own_writer_of_strings_is_that_of_coco(mask):
    assert in_coco_string(listed(mask)["counts"]) == encoded(mask)["counts"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 2, 5, 16, 31, 40, 600]), min_size=1, max_size=12), st.integers(1, 4))
def test_runs_of_length_zero_join_what_touches(runs, height):
    total = -sum(runs) % height
    runs = [*runs, 0, total] if len(runs) % 2 else [*runs, total]  # ends with background or an empty run
    width = sum(runs) // height
    if not width:
        return
    expected = np.repeat(np.arange(len(runs)) & 1, runs).reshape(width, height).T
    for counts in (runs, in_coco_string(runs)):
        read, reasons = parse_segmentations([{"size": [height, width], "counts": counts}], height, width)
        assert reasons == {}
        np.testing.assert_array_equal(pixels(read, 0), expected)
        assert is_joined(read, 0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_polygons_are_drawn_as_by_pycocotools(data):
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    numbers = st.integers(-5, 35) | st.floats(-5, 35)
    polygons = data.draw(
        st.lists(st.lists(numbers, min_size=6, max_size=14).filter(lambda p: len(p) % 2 == 0), min_size=1, max_size=3)
    )
    coco = COCO()
    coco.imgs = {1: {"height": height, "width": width}}
    expected = coco.annToMask({"image_id": 1, "segmentation": polygons})
    np.testing.assert_array_equal(read_one(polygons, height, width), expected)
    rle = compressed(polygons, height, width)
    np.testing.assert_array_equal(decode_mask(rle), expected)


def test_long_runs_and_many_masks():
    mask = np.zeros((700, 900), np.uint8)
    mask[100:650, 30:870] = 1
    runs, reasons = parse_segmentations(
        [encoded(mask), encoded(1 - mask), encoded(mask * 0), encoded(mask * 0 + 1)] * 80, 700, 900
    )
    assert (reasons, runs.areas().tolist()) == ({}, [550 * 840, 700 * 900 - 550 * 840, 0, 700 * 900] * 80)
    np.testing.assert_array_equal(pixels(runs, 317), 1 - mask)
    whole = {"size": [46340, 46340], "counts": in_coco_string([0, 46340**2])}
    assert parse_segmentations([whole], 46340, 46340)[0].areas().tolist() == [46340**2]


def test_no_masks():
    runs, reasons = parse_segmentations([], H, W)
    assert (len(runs), reasons) == (0, {})


DAMAGED = {
    "None": None,
    "number": 5,
    "text": "abc",
    "no size": {"counts": "abc"},
    "no counts": {"size": [H, W]},
    "size None": {"size": None, "counts": "abc"},
    "size a number": {"size": 63, "counts": "o1"},
    "sides swapped": {"size": [W, H], "counts": in_coco_string([H * W])},
    "three sides": {"size": [H, W, 1], "counts": in_coco_string([H * W])},
    "counts None": {"size": [H, W], "counts": None},
    "counts a number": {"size": [H, W], "counts": 123},
    "counts an object": {"size": [H, W], "counts": {}},
    "empty string": {"size": [H, W], "counts": ""},
    "too short": {"size": [H, W], "counts": in_coco_string([H * W - 1])},
    "too long": {"size": [H, W], "counts": in_coco_string([H * W + 1])},
    "too long by a run": {"size": [H, W], "counts": in_coco_string([0, H * W, 1])},
    "negative run": {"size": [H, W], "counts": in_coco_string([5, -2, H * W - 3])},
    "negative difference": {"size": [H, W], "counts": in_coco_string([5, 1, 2, -4, H * W - 4])},
    "number goes on": {"size": [H, W], "counts": in_coco_string([H * W]) + "P"},
    "long number": {"size": [H, W], "counts": "oooooooooooooooooooo0"},
    "number of eight characters": {"size": [H, W], "counts": "PPPPPPP0" + in_coco_string([H * W])},
    "letters above": {"size": [H, W], "counts": "p" + in_coco_string([H * W])},
    "letters below": {"size": [H, W], "counts": "/" + in_coco_string([H * W])},
    "umlaut": {"size": [H, W], "counts": "ä"},
    "half a character": {"size": [H, W], "counts": in_coco_string([15, H * W - 15]).replace("?", "\ud800")},
    "NUL": {"size": [H, W], "counts": "\x00" + in_coco_string([H * W])},
    "bytes that are no text": {"size": [H, W], "counts": b"\xff\xfe"},
    "list too short": {"size": [H, W], "counts": [1, 2]},
    "empty list": {"size": [H, W], "counts": []},
    "negative in list": {"size": [H, W], "counts": [70, -7]},
    "fraction in list": {"size": [H, W], "counts": [62.5, 0.5]},
    "truth in list": {"size": [H, W], "counts": [62, True]},
    "text in list": {"size": [H, W], "counts": ["63"]},
    "huge in list": {"size": [H, W], "counts": [2**64, 63 - 2**64]},
    "no polygon": [],
    "flat polygon": TRIANGLE[0],
    "point": [[1.0, 1.0]],
    "box": [[1, 1, 3, 3]],
    "odd polygon": [[1, 1, 5, 1, 3, 4, 2]],
    "polygon of None": [None],
    "polygon with None": [[1, 1, 5, None, 3, 4]],
    "polygon with text": [[1, 1, 5, "1", 3, 4]],
    "polygon with nan": [[1, 1, 5, float("nan"), 3, 4]],
    "polygon with inf": [[1, 1, 5, float("inf"), 3, 4]],
    "polygon with a huge integer": [[1, 1, 5, 10**400, 3, 4]],
    "polygon far away": [[1, 1, 5, 1e12, 3, 4]],
    "second polygon bad": [*TRIANGLE, [1, 1]],
    "list of objects": [{"size": [H, W], "counts": "abc"}],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_of_one_mask_and_the_others_are_read(name):
    mask = sample()
    runs, reasons = parse_segmentations([encoded(mask), DAMAGED[name], listed(mask), DAMAGED[name], TRIANGLE], H, W)
    assert sorted(reasons) == [1, 3]
    assert reasons[1] == reasons[3]
    assert len(reasons[1]) > 10
    assert len(runs) == 5
    assert runs.areas()[[1, 3]].tolist() == [0, 0]
    for n in (0, 2):
        np.testing.assert_array_equal(pixels(runs, n), mask)
    np.testing.assert_array_equal(pixels(runs, 4), read_one(TRIANGLE))
    with pytest.raises(ValueError, match=r"\w"):
        compressed(DAMAGED[name], H, W)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("None", "its segmentation has none of COCO's forms"),
        ("sides swapped", "its mask has size [9, 7], the image has [7, 9]"),
        ("too short", "its run-length string is damaged or does not fill 7 x 9 pixels"),
        ("list too short", "its run lengths do not fill 7 x 9 pixels"),
        ("box", "a polygon must be a list of at least three points, x and y in turn"),
        ("polygon far away", "a polygon has a coordinate that no image has"),
        ("no polygon", "its segmentation has no polygon"),
    ],
)
def test_the_reason_says_what_is_wrong(name, reason):
    assert parse_segmentations([DAMAGED[name]], H, W)[1] == {0: reason}


def test_damage_in_the_first_and_the_last_mask():
    good, bad = encoded(sample()), DAMAGED["negative difference"]
    runs, reasons = parse_segmentations([bad, bad, good, bad], H, W)
    assert sorted(reasons) == [0, 1, 3]
    assert runs.areas().tolist() == [0, 0, int(sample().sum()), 0]


@settings(max_examples=300, deadline=None)
@given(MASKS, st.data())
def test_a_mutated_string_fills_the_image_or_is_reported(mask, data):
    text = list(encoded(mask)["counts"])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=2)
        )
    damaged = {"size": list(mask.shape), "counts": "".join(text)}
    runs, reasons = parse_segmentations([encoded(mask), damaged, encoded(1 - mask)], *mask.shape)
    np.testing.assert_array_equal(pixels(runs, 0), mask)
    np.testing.assert_array_equal(pixels(runs, 2), 1 - mask)
    if reasons:
        assert list(reasons) == [1]
        with pytest.raises(ValueError, match="run-length string"):
            decode_mask(damaged)
    else:
        np.testing.assert_array_equal(pixels(runs, 1), decode_mask(damaged))
        assert is_joined(runs, 1)


@given(st.lists(st.binary(max_size=12), max_size=5))
def test_binary_garbage_is_reported_or_a_mask(strings):
    runs, reasons = parse_segmentations([{"size": [1, 6], "counts": text} for text in strings], 1, 6)
    assert len(runs) == len(strings)
    for n in range(len(strings)):
        assert pixels(runs, n).shape == (1, 6)
        assert n not in reasons or not pixels(runs, n).any()


def test_compressed_agrees_with_the_extent_that_records_hold():
    mask = sample(3)
    for form in (encoded(mask), listed(mask), {**encoded(mask), "counts": encoded(mask)["counts"].encode()}):
        rle = compressed(form, H, W)
        assert rle == encoded(mask)
        assert mask_extent(rle) == (int(mask.sum()), tuple(coco_mask.toBbox(encoded(mask)).astype(int).tolist()))


def test_a_polygon_as_large_as_is_allowed_is_drawn():
    far = [[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6, -1e6, 1e6]]
    assert read_one(far).all()
    assert not read_one([[1e6, 1e6, 1e6, 9e5, 9e5, 9e5]]).any()
