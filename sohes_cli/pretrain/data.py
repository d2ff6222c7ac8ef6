"""Batches of views: the samples of a pretraining run, read and cropped by their numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sohes_cli.data.sampling import first_readable, photograph_of, sample_generator
from sohes_cli.pretrain.views import Sample, collate, cut_views
from sohes_cli.training.loading import open_batches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.sources import ImageSource

__all__ = ["batches"]


@dataclass(frozen=True)
class _ViewSamples:
    """Views of photographs by the number of the sample in the run."""

    source: ImageSource
    config: PretrainConfig
    patch_size: int

    def __getitem__(self, number: int) -> Sample:
        """The views of a photograph, or of the next one that can be read."""
        seed, photographs = self.config.run.seed, len(self.source)
        index = photograph_of(number, photographs, seed)
        pixels, errors = first_readable(
            lambda i: self.source.read(i, self.config.views.working_size), index, photographs
        )
        return replace(
            cut_views(pixels, self.config.views, self.patch_size, sample_generator(number, seed)), errors=errors
        )


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
) -> AbstractContextManager[Iterator[Sample]]:
    """The batches of the steps `first_step` ... `steps` - 1, to be opened in a `with` block.

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
    return open_batches(
        _ViewSamples(source, config, patch_size),
        collate,
        batch_size=config.optimizer.batch_size,
        first_step=first_step,
        steps=steps,
        workers=workers,
        process=process,
        processes=processes,
    )
