"""Batches of a run: which photographs each step takes, and worker processes that make its samples.

The order of photographs is a permutation an epoch, and every sample has a generator of its own, both made from the run's seed alone. So
step s gets the same samples in a run that was stopped before it, and whether one process makes the batch or several share it.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import cv2
from torch.utils.data import DataLoader, Dataset

from sohes_cli.errors import SohesError
from sohes_cli.runs.processes import end_with_parent, without_interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


__all__ = ["Samples", "open_batches"]


S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
B = TypeVar("B")


class Samples(Protocol[S_co]):
    """Samples by their number in the run, counted over all epochs; travels to worker processes."""

    def __getitem__(self, number: int, /) -> S_co:
        """Make a sample, from its number alone; a SohesError ends the run."""


@contextmanager
def open_batches(
    samples: Samples[S],
    collate: Callable[[list[S]], B],
    *,
    batch_size: int,
    first_step: int,
    steps: int,
    workers: int,
    process: int,
    processes: int,
    pin_memory: bool = False,
) -> Iterator[Iterator[B]]:
    """Open the batches of the steps `first_step` ... `steps` - 1 in a `with` block, whose end is that of the worker processes.

    Args:
        samples: of the run, by number.
        collate: makes a batch of samples; a function that worker processes can import.
        batch_size: samples a step, of all processes together.
        first_step: the first step to come.
        steps: of the whole run.
        workers: worker processes that make samples; 0 does it in this one.
        process: number of this process among those that share a batch.
        processes: how many they are; must divide the batch size.
        pin_memory: keep batches, which need a method `pin_memory`, in memory from which a GPU copies by itself.

    Raises:
        SohesError: inside the block, if a sample cannot be made, or a worker is killed.
    """
    loader = DataLoader(
        _SampleDataset(samples),
        batch_sampler=_SampleNumbers(batch_size, first_step, steps, process, processes),
        num_workers=workers,
        collate_fn=_Collate(collate),
        worker_init_fn=_start_worker,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=pin_memory,
    )
    batches: Generator[B] = _batches(loader)
    try:
        yield batches
    except RuntimeError as error:  # torch raises it wherever the program is when a worker ends
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).split(". ")[0].rstrip(". ")
        hint = "Run the same command again to continue, with fewer --workers if memory is short."
        raise SohesError(f"A process that reads photographs was killed ({reason}).", hint) from error
    finally:
        batches.close()


@dataclass(frozen=True)
class _SampleDataset(Dataset["S | SohesError"], Generic[S]):
    """The same samples, or the errors in their place: raised in a worker they would come as tracebacks."""

    samples: Samples[S]

    def __getitem__(self, number: int) -> S | SohesError:
        try:
            return self.samples[number]
        except SohesError as error:
            return error


@dataclass(frozen=True)
class _Collate(Generic[S, B]):
    """Makes a batch of samples, or passes on the first error among them."""

    collate: Callable[[list[S]], B]

    def __call__(self, samples: list[S | SohesError]) -> B | SohesError:
        made: list[S] = []
        for sample in samples:
            if isinstance(sample, SohesError):
                return sample
            made.append(sample)
        return self.collate(made)


@dataclass(frozen=True)
class _SampleNumbers:
    """The sample numbers of this process's part of each batch, from a step on."""

    batch_size: int
    first_step: int
    steps: int
    process: int
    processes: int

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.processes
        for step in range(self.first_step, self.steps):
            start = step * self.batch_size + self.process * share
            yield list(range(start, start + share))


def _batches(loader: DataLoader[S | SohesError]) -> Generator[B]:
    resource_tracker.ensure_running()  # starts with the first worker otherwise, and lets the blocked signals through again
    with without_interrupts(signal.SIGTERM):  # both may reach a whole group of processes, of which the main one decides
        found = iter(loader)
    try:
        for batch in found:
            if isinstance(batch, SohesError):
                raise batch
            yield batch
    finally:
        del found  # ends the workers, even where a traceback keeps this frame


def _start_worker(_number: int) -> None:
    cv2.setNumThreads(1)
    end_with_parent()
