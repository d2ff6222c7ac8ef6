"""Weak views: where the pixels of a view lie in the photograph, what the teacher sees beside the student's crop, and
batches of both.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_sets import NAMES, random_masks, record_of, write_set
from PIL import Image

from sohes_cli.data.batch import Batch, Example, WeakBatch, WeakView, collate
from sohes_cli.data.config import DataConfig, ViewsConfig
from sohes_cli.data.examples import TrainingExamples, ValidationExamples
from sohes_cli.data.jitter import Crop, draw_crop, full_crop
from sohes_cli.data.sampling import sample_generator
from sohes_cli.data.sources import open_labeled
from sohes_cli.labels.manifest import Manifest, images_entry, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.data.sources import LabeledPhotographs

# photographs of at most 90 x 90 pixels are decoded whole at scales from 1 on, so a crop has the same pixels whatever
# else is cut from them
CONFIG = DataConfig(image_size=64, scale=(1.0, 2.0), min_area_px=4, min_visible=0.0)
JITTER = replace(CONFIG, scale=(0.3, 2.0), max_labels=3)
EVERY = np.arange(len(NAMES))
NUMBERS = range(40)
ROUNDING = 1e-9  # pixels: float64 keeps coordinates up to 1e4 to 1e-12


@pytest.fixture
def source(tmp_path: Path) -> LabeledPhotographs:
    return open_labeled(write_set(tmp_path))


@pytest.fixture
def crowded(tmp_path: Path) -> LabeledPhotographs:
    """Photographs with more labels than are learned from, none a part of another, so that which ones are taken is
    drawn.
    """
    labels, images = tmp_path / "labels", tmp_path / "images"
    store = open_store(labels, Manifest("explore", images_entry(labels, images), {}, {}, {}))
    images.mkdir()
    for i in range(len(EVERY)):
        rng = np.random.default_rng((9, i))
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        masks = random_masks(12, height, width, rng)
        masks = masks[masks.any((1, 2))]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(images / f"{i}.png")
        store.write(record_of(masks, np.full(len(masks), -1), rng.random(len(masks)), f"{i}.png"))
    return open_labeled(labels)


def labels_of(example: Example) -> tuple[object, ...]:
    tensors = (example.masks, example.parents)
    return (
        example.number,
        example.name,
        example.errors,
        example.pixels.shape,
        *((t.shape, t.dtype, t.numpy().tobytes()) for t in tensors),
    )


def weak_of(example: Example) -> WeakView:
    assert example.weak is not None
    return example.weak


def flips(examples: TrainingExamples, numbers: range = NUMBERS) -> list[bool]:
    return [weak_of(examples[number]).crop.flipped for number in numbers]


# Where pixels lie


@st.composite
def crops(draw: st.DrawFn, smallest: int = 1, largest: int = 3000) -> Crop:
    """What training draws of a photograph: larger or smaller than the square, mirrored or not."""
    height, width = draw(st.integers(smallest, largest)), draw(st.integers(smallest, largest))
    scale = draw(st.sampled_from([(0.1, 0.9), (1.0, 1.0), (1.1, 2.0)]))
    config = DataConfig(image_size=64, scale=scale, flip=draw(st.sampled_from([0.0, 1.0])))
    return draw_crop(height, width, config, np.random.default_rng(draw(st.integers(0, 2**31 - 1))))


@settings(max_examples=200, deadline=None)
@given(crop=crops())
def test_from_the_window_to_the_photograph_and_back(crop: Crop) -> None:
    np.testing.assert_allclose(
        crop.window_rows(crop.source_rows()), np.arange(crop.height) + 0.5, rtol=0, atol=ROUNDING
    )
    np.testing.assert_allclose(
        crop.window_columns(crop.source_columns()), np.arange(crop.width) + 0.5, rtol=0, atol=ROUNDING
    )


@settings(max_examples=200, deadline=None)
@given(crop=crops())
def test_centers_lie_in_the_pixels_that_masks_are_read_from(crop: Crop) -> None:
    """They are evenly spaced, and each is in the photograph's pixel that `rows` and `columns` name."""
    for centers, pixels in ((crop.source_rows(), crop.rows), (crop.source_columns(), crop.columns)):
        assert centers.dtype == np.float64
        assert np.abs(centers - (pixels + 0.5)).max() <= 0.5 + ROUNDING
    sign = -1 if crop.flipped else 1
    np.testing.assert_allclose(np.diff(crop.source_rows()), crop.source_height / crop.scaled_height, atol=ROUNDING)
    np.testing.assert_allclose(
        np.diff(crop.source_columns()), sign * crop.source_width / crop.scaled_width, atol=ROUNDING
    )


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), flipped=st.booleans())
def test_the_borders_of_a_photograph_are_those_of_its_whole_view(height: int, width: int, flipped: bool) -> None:
    view = replace(full_crop(height, width, 64), flipped=flipped)
    np.testing.assert_allclose(view.window_rows(np.array([0.0, height])), [0, view.height], atol=ROUNDING)
    left_to_right = [view.width, 0] if flipped else [0, view.width]
    np.testing.assert_allclose(view.window_columns(np.array([0.0, width])), left_to_right, atol=ROUNDING)


@settings(max_examples=100, deadline=None)
@given(crop=crops(smallest=40, largest=250))
def test_pixels_show_the_places_that_are_named(crop: Crop) -> None:
    """A photograph whose red is the row and whose green is the column; the filter may round to a neighboring value, and
    ends at borders.
    """
    photograph = np.zeros((crop.source_height, crop.source_width, 3), np.uint8)
    photograph[..., 0] = np.arange(crop.source_height)[:, None]
    photograph[..., 1] = np.arange(crop.source_width)
    shown = crop.cut(photograph).astype(float)
    for channel, centers, size, zoom in (
        (shown[:, 0, 0], crop.source_rows(), crop.source_height, crop.source_height / crop.scaled_height),
        (shown[0, :, 1], crop.source_columns(), crop.source_width, crop.source_width / crop.scaled_width),
    ):
        is_inner = np.minimum(centers, size - centers) > max(zoom, 1)
        assert np.abs(channel - (centers - 0.5))[is_inner].max(initial=0) <= 1


# What the teacher sees


@pytest.mark.parametrize("weak", ["whole", "crop"])
def test_crops_and_labels_are_those_of_phase_2(crowded: LabeledPhotographs, weak: str) -> None:
    plain = TrainingExamples(crowded, EVERY, JITTER, 5)
    viewed = replace(plain, views=ViewsConfig(weak=weak))
    found = [viewed[number] for number in NUMBERS]
    assert [labels_of(example) for example in found] == [labels_of(plain[number]) for number in NUMBERS]
    assert all(plain[number].weak is None for number in range(5))
    assert max(len(example.masks) for example in found) == JITTER.max_labels
    for example in found:
        record = crowded.record(crowded.names.index(example.name))
        assert weak_of(example).student == draw_crop(
            record.height, record.width, JITTER, sample_generator(example.number, 5)
        )


@pytest.mark.parametrize("weak", ["whole", "crop"])
def test_pixels_are_those_of_phase_2(source: LabeledPhotographs, weak: str) -> None:
    plain = TrainingExamples(source, EVERY, CONFIG, 5)
    viewed = replace(plain, views=ViewsConfig(weak=weak))
    assert all(torch.equal(viewed[number].pixels, plain[number].pixels) for number in NUMBERS)


def test_the_whole_photograph_is_seen_at_the_size_of_the_square(source: LabeledPhotographs) -> None:
    examples = TrainingExamples(source, EVERY, CONFIG, 1, ViewsConfig())
    whole = {
        example.name: example.pixels
        for example in map(ValidationExamples(source, EVERY, CONFIG).__getitem__, range(len(EVERY)))
    }
    mirrored = 0
    for number in NUMBERS:
        example = examples[number]
        weak, record = weak_of(example), source.record(NAMES.index(example.name))
        assert replace(weak.crop, flipped=False) == full_crop(record.height, record.width, 64)
        assert max(weak.pixels.shape[:2]) == 64
        assert weak.pixels.dtype == torch.uint8
        assert torch.equal(weak.pixels.flip(1) if weak.crop.flipped else weak.pixels, whole[example.name])
        mirrored += weak.crop.flipped
    assert 0 < mirrored < len(NUMBERS)


def test_the_students_crop_is_seen_if_asked_for(source: LabeledPhotographs) -> None:
    examples = TrainingExamples(source, EVERY, CONFIG, 1, ViewsConfig(weak="crop", weak_flip=1.0))
    for number in NUMBERS:
        example = examples[number]
        assert weak_of(example).crop == weak_of(example).student
        assert torch.equal(weak_of(example).pixels, example.pixels)
    assert len(set(flips(examples))) == 2  # the student's own


def test_flips_follow_from_seed_and_number(source: LabeledPhotographs) -> None:
    examples = TrainingExamples(source, EVERY, CONFIG, 7, ViewsConfig())
    expected = flips(examples)
    copy = pickle.loads(pickle.dumps(examples))
    assert flips(copy, range(39, -1, -1)) == expected[::-1]
    assert flips(replace(examples, views=ViewsConfig(jitter=0.0, erase=0.1))) == expected
    assert flips(replace(examples, seed=8)) != expected
    student = [weak_of(examples[number]).student.flipped for number in NUMBERS]
    assert len(set(zip(student, expected, strict=True))) == 4  # of its own, not that of the student


def test_flips_are_as_probable_as_asked_for(source: LabeledPhotographs) -> None:
    never, seldom, often, always = (
        flips(TrainingExamples(source, EVERY, CONFIG, 0, ViewsConfig(weak_flip=share)), range(150))
        for share in (0.0, 0.25, 0.75, 1.0)
    )
    assert not any(never)
    assert all(always)
    assert abs(np.mean(seldom) - 0.25) < 0.1  # 2.8 standard deviations of 150 draws
    assert abs(np.mean(often) - 0.75) < 0.1
    assert all(b for a, b in zip(seldom, often, strict=True) if a)


def test_validation_has_no_weak_views(source: LabeledPhotographs) -> None:
    assert ValidationExamples(source, EVERY, CONFIG)[0].weak is None


# Batches


def viewed_examples(sizes: list[tuple[int, int]]) -> list[Example]:
    """Examples of 8 x 12 pixels whose weak views have these sizes."""
    rng, made = np.random.default_rng(0), []
    for number, (height, width) in enumerate(sizes):
        pixels, weak = (
            torch.from_numpy(rng.integers(1, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((8, 12), (height, width))
        )
        view = WeakView(weak, full_crop(height, width, 64), Crop(height, width, 40, 40, number, 0, 8, 12))
        made.append(
            Example(
                number, f"{number}.png", pixels, torch.zeros(0, 12, dtype=torch.uint8), torch.zeros(0).long(), weak=view
            )
        )
    return made


def weak_batch(batch: Batch) -> WeakBatch:
    assert batch.weak is not None
    return batch.weak


SIZES = [(5, 40), (33, 7), (16, 16), (1, 1), (20, 64)]


def test_weak_views_are_padded_as_images_are() -> None:
    examples = viewed_examples(SIZES)
    batch = collate(examples, 32)
    weak = weak_batch(batch)
    assert batch.pixels.shape == (5, 32, 32, 3)
    assert weak.pixels.shape == (5, 64, 64, 3)
    assert weak.pixels.dtype == torch.uint8
    assert weak.sizes == tuple(SIZES)
    assert weak.crops == tuple(weak_of(example).crop for example in examples)
    assert weak.students == tuple(weak_of(example).student for example in examples)
    for image, example, (height, width) in zip(weak.pixels, examples, SIZES, strict=True):
        assert torch.equal(image[:height, :width], weak_of(example).pixels)
        assert int((image > 0).sum()) == 3 * height * width  # nothing outside


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 9])
def test_parts_have_the_weak_views_of_their_examples(parts: int) -> None:
    batch = collate(viewed_examples(SIZES), 8)
    whole, split = weak_batch(batch), batch.split(parts)
    assert len(split) == min(parts, 5)
    weak = [weak_batch(part) for part in split]
    assert [len(part) for part in split] == [len(part.sizes) for part in weak]
    assert torch.equal(torch.cat([part.pixels for part in weak]), whole.pixels)
    for name in ("sizes", "crops", "students"):
        assert sum((getattr(part, name) for part in weak), ()) == getattr(whole, name)


def test_weak_views_go_to_a_device_with_their_batch() -> None:
    batch = collate(viewed_examples(SIZES), 8)
    moved = batch.to(torch.device("meta"))
    assert moved.pixels.device.type == weak_batch(moved).pixels.device.type == "meta"
    assert weak_batch(moved).pixels.shape == weak_batch(batch).pixels.shape
    assert replace(weak_batch(moved), pixels=weak_batch(batch).pixels) == weak_batch(batch)
    assert weak_batch(batch).pixels.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU only")
def test_weak_views_are_pinned_with_their_batch() -> None:
    batch = collate(viewed_examples(SIZES), 8)
    pinned = weak_batch(batch.pin_memory())
    assert pinned.pixels.is_pinned()
    assert torch.equal(pinned.pixels, weak_batch(batch).pixels)
    assert replace(pinned, pixels=weak_batch(batch).pixels) == weak_batch(batch)


def test_a_batch_without_weak_views_has_none_anywhere() -> None:
    batch = collate([replace(example, weak=None) for example in viewed_examples(SIZES)], 8)
    assert batch.weak is None
    assert batch.to(torch.device("meta")).weak is None
    assert [part.weak for part in batch.split(2)] == [None, None]
