"""Batches of views: which photographs each step takes, and worker processes that read and crop them.

The order of photographs is a permutation an epoch, and every sample has a generator of its own, both made from the run's seed alone. So
step s gets the same views in a run that was stopped before it, and whether one process makes the batch or several share it.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from sohes_cli.errors import ImageError, SohesError
from sohes_cli.pretrain.views import Sample, collate, cut_views
from sohes_cli.processes import end_with_parent, without_interrupts

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.sources import ImageSource

__all__ = ["batches"]

_REPLACEMENTS = 20


@dataclass(frozen=True)
class _SampleDataset(Dataset["Sample | SohesError"]):
    """Samples by their number in the run, counted over all epochs."""

    source: ImageSource
    config: PretrainConfig
    patch_size: int

    def __getitem__(self, number: int) -> Sample | SohesError:
        """The views of a photograph or of the next one that can be read; an error is returned, for a worker's come as tracebacks."""
        seed = self.config.run.seed
        index = _photograph(number, len(self.source), seed)
        errors: list[str] = []
        for attempt in range(min(_REPLACEMENTS, len(self.source))):
            try:
                pixels = self.source.read((index + attempt) % len(self.source), self.config.views.working_size)
            except ImageError as error:
                errors.append(str(error))
                continue
            sample = cut_views(pixels, self.config.views, self.patch_size, np.random.default_rng((seed, 1, number)))
            return replace(sample, errors=tuple(errors))
        return SohesError(f"{len(errors)} photographs in a row cannot be read; the last: {errors[-1]}", "Mend or remove them.")


@dataclass(frozen=True)
class _Batches:
    """The sample numbers of this process's part of each batch, from a step on."""

    config: PretrainConfig
    first_step: int
    steps: int
    process: int
    processes: int

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        size = self.config.optimizer.batch_size
        share = size // self.processes
        for step in range(self.first_step, self.steps):
            start = step * size + self.process * share
            yield list(range(start, start + share))


@contextmanager
def batches(
    source: ImageSource, config: PretrainConfig, patch_size: int, first_step: int, steps: int, *, workers: int, process: int, processes: int
) -> Iterator[Iterator[Sample]]:
    """Open the batches of the steps `first_step` ... `steps` - 1 in a `with` block, whose end is that of the worker processes.

    Args:
        source: the photographs.
        config: the settings of the run.
        patch_size: side of a patch in pixels.
        first_step: the first step to come.
        steps: of the whole run.
        workers: worker processes that read and crop; 0 does it in this one.
        process: number of this process among those that share a batch.
        processes: how many they are; must divide the batch size.

    Raises:
        SohesError: inside the block, if many photographs in a row cannot be read, or a worker is killed.
    """
    loader = DataLoader(
        _SampleDataset(source, config, patch_size),
        batch_sampler=_Batches(config, first_step, steps, process, processes),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        multiprocessing_context="spawn" if workers else None,
    )
    samples = _samples(loader)
    try:
        yield samples
    except RuntimeError as error:  # torch raises it wherever the program is when a worker ends
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).split(". ")[0].rstrip(". ")
        hint = "Run the same command again to continue, with fewer --workers if memory is short."
        raise SohesError(f"A process that reads photographs was killed ({reason}).", hint) from error
    finally:
        samples.close()


def _samples(loader: DataLoader[Sample | SohesError]) -> Generator[Sample]:
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


def _collate(samples: list[Sample | SohesError]) -> Sample | SohesError:
    failed = [sample for sample in samples if isinstance(sample, SohesError)]
    return failed[0] if failed else collate([sample for sample in samples if isinstance(sample, Sample)])


def _photograph(number: int, photographs: int, seed: int) -> int:
    """Which photograph a sample shows: each epoch is a permutation of its own."""
    epoch, place = divmod(number, photographs)
    return int(_order(epoch, photographs, seed)[place])


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def _order(epoch: int, photographs: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, 0, epoch)).permutation(photographs)


def _start_worker(_number: int) -> None:
    cv2.setNumThreads(1)
    end_with_parent()
