"""Batches: every photograph once per epoch, equal samples in any worker and resumed run, and named errors."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sohes_cli.data.sampling import first_readable, photograph_of, sample_generator
from sohes_cli.errors import ImageError, SohesError
from sohes_cli.training.loading import open_batches

Sample = tuple[int, int, float]


@dataclass(frozen=True)
class Photographs:
    """Samples of their number, their photograph and a random number.

    Args:
        count: photographs.
        seed: of the run.
        damaged: first sample that cannot be made.
        kills: first sample that kills its process.
    """

    count: int = 5
    seed: int = 3
    damaged: int = 10**9
    kills: int = 10**9

    def __getitem__(self, number: int) -> Sample:
        if number >= self.damaged:
            raise ImageError(f"Sample {number} is damaged.", "Mend it.")
        if number >= self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return number, photograph_of(number, self.count, self.seed), float(sample_generator(number, self.seed).random())


def batches(
    samples: Photographs,
    first_step: int,
    steps: int,
    *,
    batch_size: int = 4,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> list[list[Sample]]:
    place = {"workers": workers, "process": process, "processes": processes}
    with open_batches(samples, list, batch_size=batch_size, first_step=first_step, steps=steps, **place) as opened:
        return list(opened)


@given(photographs=st.integers(1, 30), epoch=st.integers(0, 5), seed=st.integers(0, 2**31 - 1))
def test_an_epoch_shows_every_photograph_once(photographs: int, epoch: int, seed: int) -> None:
    numbers = range(epoch * photographs, (epoch + 1) * photographs)
    assert sorted(photograph_of(number, photographs, seed) for number in numbers) == list(range(photographs))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(photograph_of(epoch * 20 + i, 20, seed) for i in range(20)) for epoch in range(3) for seed in range(3)
    }
    assert len(orders) == 9


def test_samples_have_generators_of_their_own() -> None:
    drawn = {sample_generator(number, seed).random() for number in range(20) for seed in range(3)}
    assert len(drawn) == 60
    assert sample_generator(7, 1).random() == sample_generator(7, 1).random()


@given(first_step=st.integers(0, 6), processes=st.sampled_from([1, 2, 3, 6]))
def test_steps_are_the_same_wherever_they_begin_and_whoever_shares_them(first_step: int, processes: int) -> None:
    whole = batches(Photographs(), 0, 6, batch_size=6)
    assert [number for batch in whole for number, _, _ in batch] == list(range(36))
    parts = [
        batches(Photographs(), first_step, 6, batch_size=6, process=i, processes=processes) for i in range(processes)
    ]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == whole[first_step:]


def test_worker_processes_make_the_same_batches_in_order() -> None:
    assert batches(Photographs(), 1, 6, workers=2) == batches(Photographs(), 1, 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_made_ends_the_run_with_its_error(workers: int) -> None:
    taken: list[list[Sample]] = []

    def take_all() -> None:
        place = {"workers": workers, "process": 0, "processes": 1}
        with open_batches(Photographs(damaged=9), list, batch_size=4, first_step=0, steps=5, **place) as opened:
            taken.extend(opened)

    with pytest.raises(ImageError, match=r"Sample 9 is damaged\. Mend it\.") as caught:
        take_all()
    assert len(taken) == 2  # those before it
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_was_killed_is_named() -> None:
    with pytest.raises(SohesError, match="A process that reads photographs was killed") as caught:
        batches(Photographs(kills=6), 0, 100, workers=1)
    assert "fewer --workers" in caught.value.hint


def test_an_error_of_the_program_keeps_its_kind() -> None:
    with (
        pytest.raises(RuntimeError, match="a mistake"),
        open_batches(Photographs(), list, batch_size=4, first_step=0, steps=5, workers=0, process=0, processes=1),
    ):
        raise RuntimeError("a mistake")


def read_except(*damaged: int) -> object:
    def read(index: int) -> str:
        if index in damaged:
            raise ImageError(f"{index} is damaged.")
        return f"photograph {index}"

    return read


def test_the_next_photograph_that_can_be_read_takes_the_place_of_a_damaged_one() -> None:
    assert first_readable(read_except(), 3, 5) == ("photograph 3", ())
    assert first_readable(read_except(3), 3, 5) == ("photograph 4", ("3 is damaged.",))
    assert first_readable(read_except(3, 4, 0), 3, 5) == (
        "photograph 1",
        ("3 is damaged.", "4 is damaged.", "0 is damaged."),
    )


@pytest.mark.parametrize(("photographs", "tried"), [(2, 2), (1000, 20)])
def test_too_many_damaged_photographs_in_a_row_are_an_error(photographs: int, tried: int) -> None:
    with pytest.raises(
        SohesError, match=f"^{tried} photographs in a row cannot be read; the last: {tried - 1} is damaged"
    ):
        first_readable(read_except(*range(photographs)), 0, photographs)
