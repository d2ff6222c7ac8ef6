"""Samples of a pretraining run: multi-crop views of photographs by sample number, and their batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sohes_cli.data.sampling import first_readable, photograph_of, sample_generator
from sohes_cli.pretrain.views import ViewSample, collate_views, cut_views
from sohes_cli.training.loading import open_batches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.sources import ImageSource

__all__ = ["batches"]


@dataclass(frozen=True)
class _ViewSamples:
    """Views by the number of the sample in the run."""

    source: ImageSource
    config: PretrainConfig
    patch_size: int

    def __getitem__(self, number: int) -> ViewSample:
        """Cut the views of a photograph, or of the next readable one."""
        seed, views, photographs = self.config.run.seed, self.config.views, len(self.source)
        pixels, errors = first_readable(
            lambda i: self.source.read(i, views.working_size), photograph_of(number, photographs, seed), photographs
        )
        return cut_views(pixels, views, self.patch_size, sample_generator(number, seed))._replace(errors=errors)


def batches(
    source: ImageSource,
    config: PretrainConfig,
    patch_size: int,
    first_step: int,
    steps: int,
    *,
    workers: int,
    process: int,
    processes: int,
) -> AbstractContextManager[Iterator[ViewSample]]:
    """Open the batches of a run with patches of `patch_size` pixels in a `with` block; see `open_batches`.

    Raises:
        SohesError: inside the block, if many consecutive photographs cannot be read, or a worker is killed.
    """
    return open_batches(
        _ViewSamples(source, config, patch_size),
        collate_views,
        batch_size=config.optimizer.batch_size,
        first_step=first_step,
        steps=steps,
        workers=workers,
        process=process,
        processes=processes,
    )
