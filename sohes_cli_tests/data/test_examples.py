"""Examples: made from seed and number alone, masks that lie where the photograph shows them, and photographs that
cannot be used.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from label_sets import NAMES, write_set

from sohes_cli.data.config import DataConfig
from sohes_cli.data.examples import TrainingExamples, ValidationExamples, split_photographs
from sohes_cli.data.sources import open_labeled
from sohes_cli.errors import SohesError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.data.batch import Example
    from sohes_cli.data.sources import LabeledPhotographs

CONFIG = DataConfig(image_size=64, scale=(0.4, 2.0), min_area_px=4, min_visible=0.0)
EVERY = np.arange(len(NAMES))


@pytest.fixture
def source(tmp_path: Path) -> LabeledPhotographs:
    return open_labeled(write_set(tmp_path))


def fields(example: Example) -> tuple[object, ...]:
    tensors = (example.pixels, example.masks, example.parents)
    return (example.number, example.name, example.errors, *((t.shape, t.dtype, t.numpy().tobytes()) for t in tensors))


def unpacked(example: Example) -> np.ndarray:
    height, width = example.pixels.shape[:2]
    bits = np.unpackbits(example.masks.numpy(), axis=1, bitorder="little")[:, : height * width]
    return bits.reshape(-1, width, height).transpose(0, 2, 1).astype(np.bool_)


def remove(source: LabeledPhotographs, name: str) -> None:
    (source.images / name).unlink()


# What they hold


def test_masks_lie_where_the_photograph_shows_them(source: LabeledPhotographs) -> None:
    """The first mask is the red channel and the second one the green; pixels are clear away from their edges."""
    examples = TrainingExamples(source, EVERY, CONFIG, 0)
    clear, seen = 0, 0
    for number in range(40):
        example = examples[number]
        masks = unpacked(example)
        assert max(example.pixels.shape[:2]) <= 64
        assert example.parents.tolist() in ([-1, 0], [-1], [])
        for mask, channel in zip(masks, example.pixels.numpy().transpose(2, 0, 1), strict=False):
            is_clear = (channel < 60) | (channel > 195)
            assert np.array_equal(mask[is_clear], channel[is_clear] > 127)
            clear, seen = clear + is_clear.sum(), seen + is_clear.size
    assert clear > 0.9 * seen


def test_an_example_follows_from_seed_and_number(source: LabeledPhotographs) -> None:
    examples = TrainingExamples(source, EVERY, CONFIG, 7)
    expected = [fields(examples[number]) for number in range(12)]
    copy = pickle.loads(pickle.dumps(examples))
    assert [fields(copy[number]) for number in reversed(range(12))] == expected[::-1]
    assert [e[0] for e in expected] == list(range(12))
    assert len({e[3] for e in expected}) == 12
    other = TrainingExamples(source, EVERY, CONFIG, 8)
    assert [fields(other[number]) for number in range(12)] != expected


def test_an_epoch_shows_every_photograph_of_the_split_once(source: LabeledPhotographs) -> None:
    indices = np.array([0, 2, 3])
    names = [TrainingExamples(source, indices, CONFIG, 3)[number].name for number in range(30)]
    epochs = [tuple(names[i : i + 3]) for i in range(0, 30, 3)]
    assert all(sorted(epoch) == [NAMES[i] for i in indices] for epoch in epochs)
    assert len(set(epochs)) > 1


def test_tensors_may_be_written_to(source: LabeledPhotographs, recwarn: pytest.WarningsRecorder) -> None:
    for examples in (TrainingExamples(source, EVERY, CONFIG, 0), ValidationExamples(source, EVERY, CONFIG)):
        for number in range(5):
            example = examples[number]
            example.pixels.add_(1)
            example.masks.add_(1)
    assert not recwarn.list


def test_validation_shows_whole_photographs_and_nothing_random(source: LabeledPhotographs) -> None:
    examples = ValidationExamples(source, np.array([4, 1]), CONFIG)
    assert len(examples) == 2
    for number, index in enumerate((4, 1)):
        example, record = examples[number], source.record(index)
        assert fields(example) == fields(examples[number])
        assert (example.number, example.name, example.parents.tolist()) == (number, NAMES[index], [-1, 0])
        assert max(example.pixels.shape[:2]) == 64
        shares = [a.area / (record.height * record.width) for a in record.annotations]
        assert np.allclose(unpacked(example).mean((1, 2)), shares, atol=0.03)
    best = ValidationExamples(source, np.array([0]), replace(CONFIG, max_labels=1))[
        0
    ]  # the better one does not fit with its parent
    assert torch.equal(best.masks, ValidationExamples(source, np.array([0]), CONFIG)[0].masks[:1])
    with pytest.raises(IndexError):
        examples[2]


# What cannot be used


def test_the_next_photograph_takes_the_place_of_one_that_cannot_be_read(source: LabeledPhotographs) -> None:
    examples = TrainingExamples(source, EVERY, CONFIG, 0)
    before = [examples[number] for number in range(5)]
    remove(source, "b.png")
    (source.source.path / "sub/c.png.json").write_text("{")
    for number, example in enumerate(before):
        now = examples[number]
        if example.name == "b.png":
            assert now.name == "sub/flügel.png"
            assert "b.png does not exist" in now.errors[0]
            assert "c.png.json is corrupt" in now.errors[1]
        elif example.name == "sub/c.png":
            assert now.name == "sub/flügel.png"
            assert len(now.errors) == 1
        else:
            assert fields(now) == fields(example)


def test_the_first_photograph_follows_the_last(source: LabeledPhotographs) -> None:
    remove(source, "z.png")
    examples = TrainingExamples(source, np.array([1, 4]), CONFIG, 0)
    assert {examples[number].name for number in range(4)} == {"b.png"}
    assert sum(len(examples[number].errors) for number in range(4)) == 2


def test_no_photograph_at_all(source: LabeledPhotographs) -> None:
    for name in NAMES:
        remove(source, name)
    with pytest.raises(SohesError, match=r"5 photographs in a row cannot be read; the last: .*does not exist"):
        TrainingExamples(source, EVERY, CONFIG, 0)[0]


def test_a_held_out_photograph_that_cannot_be_read(source: LabeledPhotographs) -> None:
    remove(source, "b.png")
    examples = ValidationExamples(source, EVERY, CONFIG)
    with pytest.raises(SohesError, match=r"b\.png does not exist"):
        examples[1]
    assert examples[2].name == "sub/c.png"


# The split


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (5, 4), (100, 5), (1000, 64)])
def test_a_split_holds_every_photograph_once(count: int, held_out: int) -> None:
    training, validation = split_photographs(count, held_out, 0)
    assert (len(training), len(validation)) == (count - held_out, held_out)
    assert sorted([*training, *validation]) == list(range(count))
    assert (np.diff(training) > 0).all()
    assert (np.diff(validation) > 0).all()


def test_a_split_follows_from_the_seed() -> None:
    assert np.array_equal(split_photographs(200, 10, 3)[1], split_photographs(200, 10, 3)[1])
    assert not np.array_equal(split_photographs(200, 10, 3)[1], split_photographs(200, 10, 4)[1])


def test_a_split_must_leave_something_to_train_on() -> None:
    with pytest.raises(UsageError, match=r"5 of 5 photographs .*data\.validation=\.\.\. less than 5"):
        split_photographs(5, 5, 0)
