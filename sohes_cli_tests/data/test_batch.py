"""Batches: every image unchanged at the top left of one canvas, its masks packed for its own size, and parts that make
up the whole.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes_cli.data.batch import Batch, Example, collate

SIZES = st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=7)


def examples(sizes: list[tuple[int, int]], seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for number, (height, width) in enumerate(sizes):
        n = int(rng.integers(4))
        pixels = torch.from_numpy(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))
        masks = torch.from_numpy(rng.integers(1, 256, (n, -(-height * width // 8)), dtype=np.uint8))
        errors = (f"{number} cannot be read",) if number % 2 else ()
        made.append(Example(number + 10, f"{number}.png", pixels, masks, torch.arange(n) - 1, errors))
    return made


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, stride=st.sampled_from([1, 7, 32]))
def test_images_are_padded_to_the_least_common_size(sizes: list[tuple[int, int]], stride: int) -> None:
    made = examples(sizes)
    batch = collate(made, stride)
    height, width = batch.pixels.shape[1:3]
    assert batch.sizes == tuple(sizes)
    assert batch.pixels.dtype == torch.uint8
    assert height % stride == width % stride == 0
    assert 0 <= height - max(h for h, _ in sizes) < stride
    assert 0 <= width - max(w for _, w in sizes) < stride
    for image, example, (h, w) in zip(batch.pixels, made, sizes, strict=True):
        assert torch.equal(image[:h, :w], example.pixels)
        assert int((image > 0).sum()) == 3 * h * w  # nothing outside


def test_everything_else_comes_as_it_is() -> None:
    made = examples([(5, 8), (9, 4), (7, 7), (1, 1)])
    batch = collate(made, 8)
    assert len(batch) == 4
    assert batch.numbers == (10, 11, 12, 13)
    assert batch.names == ("0.png", "1.png", "2.png", "3.png")
    assert batch.errors == ("1 cannot be read", "3 cannot be read")
    for k, example in enumerate(made):
        assert torch.equal(batch.masks[k], example.masks)
        assert torch.equal(batch.parents[k], example.parents)


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, parts=st.integers(1, 9))
def test_parts_make_up_the_batch(sizes: list[tuple[int, int]], parts: int) -> None:
    batch = collate(examples(sizes), 8)
    split = batch.split(parts)
    assert 1 <= len(split) <= parts
    assert max(map(len, split)) == -(-len(batch) // parts)
    assert min(map(len, split)) >= 1
    assert torch.equal(torch.cat([part.pixels for part in split]), batch.pixels)
    for name in ("sizes", "numbers", "names"):
        assert sum((getattr(part, name) for part in split), ()) == getattr(batch, name)
    for name in ("masks", "parents"):
        together = [tensor for part in split for tensor in getattr(part, name)]
        assert all(torch.equal(a, b) for a, b in zip(together, getattr(batch, name), strict=True))


def test_a_batch_goes_to_a_device_but_its_forest() -> None:
    batch = collate(examples([(5, 8), (9, 4)]), 8)
    moved = batch.to(torch.device("meta"))
    assert moved.pixels.device.type == "meta"
    assert all(masks.device.type == "meta" for masks in moved.masks)
    assert all(parents.device.type == "cpu" for parents in moved.parents)
    assert (moved.sizes, moved.names) == (batch.sizes, batch.names)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU only")
def test_a_pinned_batch_is_the_same() -> None:
    batch = collate(examples([(5, 8), (9, 4)]), 8)
    pinned: Batch = batch.pin_memory()
    assert pinned.pixels.is_pinned()
    assert torch.equal(pinned.pixels, batch.pixels)
    assert all(torch.equal(a, b) for a, b in zip(pinned.masks, batch.masks, strict=True))
