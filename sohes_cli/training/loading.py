"""Batches of a run, made by worker processes: the share of each process in each step.

A sample follows from its number and the run's seed alone (see `sohes_cli.data.sampling`), so a step gets the same
samples in a resumed run, with any number of workers, and with one process or several.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
    """Samples by their number in the run, counted over all epochs; pickled for worker processes."""

    def __getitem__(self, number: int, /) -> S_co:
        """Make a sample from its number alone; a SohesError ends the run."""


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
    """Open the batches of steps `first_step` ... `steps` - 1; the worker processes end with the `with` block.

    Args:
        samples: by number.
        collate: makes a batch of samples; importable by worker processes.
        batch_size: samples per step over all processes.
        first_step: from 0.
        steps: of the whole run.
        workers: worker processes; 0 makes samples in this one.
        process: rank of this process.
        processes: world size; must divide the batch size.
        pin_memory: pin batches, which need a method `pin_memory`, for asynchronous copies to a GPU.

    Raises:
        SohesError: inside the block, if a sample cannot be made or a worker is killed.
    """
    share = batch_size // processes
    starts = range(first_step * batch_size + process * share, steps * batch_size, batch_size)
    loader = DataLoader(
        _SampleDataset(samples),
        batch_sampler=(list(range(start, start + share)) for start in starts),
        num_workers=workers,
        collate_fn=partial(_collate, collate),
        worker_init_fn=_start_worker,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=pin_memory,
    )
    batches: Generator[B] = _batches(loader)
    try:
        yield batches
    except RuntimeError as error:  # raised by torch at any point of the block when a worker dies
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).split(". ")[0].rstrip(". ")
        hint = "Run the same command again to continue, with fewer --workers if memory is short."
        raise SohesError(f"A process that reads photographs was killed ({reason}).", hint) from error
    finally:
        batches.close()


@dataclass(frozen=True)
class _SampleDataset(Dataset["S | SohesError"], Generic[S]):
    """Samples, or SohesErrors as values: raised in a worker they would arrive as tracebacks."""

    samples: Samples[S]

    def __getitem__(self, number: int) -> S | SohesError:
        try:
            return self.samples[number]
        except SohesError as error:
            return error


def _collate(collate: Callable[[list[S]], B], samples: list[S | SohesError]) -> B | SohesError:
    """Collate samples, or return the first error among them."""
    errors = [sample for sample in samples if isinstance(sample, SohesError)]
    return errors[0] if errors else collate([sample for sample in samples if not isinstance(sample, SohesError)])


def _batches(loader: DataLoader[S | SohesError]) -> Generator[B]:
    resource_tracker.ensure_running()  # else it starts with the first worker and unblocks the signals
    with without_interrupts(signal.SIGTERM):  # signals may reach the whole process group; the main process decides
        iterator = iter(loader)
    try:
        for batch in iterator:
            if isinstance(batch, SohesError):
                raise batch
            yield batch
    finally:
        del iterator  # ends the workers, even if a traceback keeps this frame


def _start_worker(_number: int) -> None:
    cv2.setNumThreads(1)
    end_with_parent()
