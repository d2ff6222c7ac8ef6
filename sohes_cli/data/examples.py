"""Photographs and labels -> training and validation examples by number.

A training example depends on the run's seed and its number alone, so it is the same in any worker or process and after
any interruption. A validation example has no randomness: the whole photograph and its best-scoring labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sohes_cli.data.batch import Example, WeakView
from sohes_cli.data.jitter import draw_crop, full_crop
from sohes_cli.data.sampling import first_readable, photograph_of, sample_generator
from sohes_cli.data.targets import crop_targets
from sohes_cli.errors import UsageError

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from sohes_cli.data.config import DataConfig, ViewsConfig
    from sohes_cli.data.jitter import Crop
    from sohes_cli.data.sources import LabeledPhotographs
    from sohes_cli.structures import LabelRecord

__all__ = ["TrainingExamples", "ValidationExamples", "split_photographs"]

_SPLIT = 2  # random stream of the run's seed; `sohes_cli.data.sampling` uses 0 and 1


@dataclass(frozen=True, eq=False)
class TrainingExamples:
    """Random crops by sample number, counted over all epochs; each epoch shows every photograph once.

    Args:
        source: photographs with labels.
        indices: training photographs, int64 [N].
        config: crops and labels.
        seed: of the run.
        views: settings of phase 3, which adds the teacher's view; crops and labels equal those of phase 2.
    """

    source: LabeledPhotographs
    indices: NDArray[np.int64] = field(repr=False)
    config: DataConfig
    seed: int
    views: ViewsConfig | None = None

    def __getitem__(self, number: int) -> Example:
        """Build an example; unreadable photographs are replaced by the next one and listed in its `errors`.

        Raises:
            SohesError: if twenty in a row, or all, cannot be read.
        """
        count = len(self.indices)
        position = photograph_of(number, count, self.seed)
        example, errors = first_readable(lambda p: self._example(number, int(self.indices[p])), position, count)
        return replace(example, errors=errors)

    def _example(self, number: int, index: int) -> Example:
        record, rng = self.source.record(index), sample_generator(number, self.seed)
        crop = draw_crop(record.height, record.width, self.config, rng)
        return _example(number, self.source, record, crop, self.config, rng, self.views)


@dataclass(frozen=True, eq=False)
class ValidationExamples:
    """Whole photographs with their best-scoring labels, by number from 0.

    Args:
        source: photographs with labels.
        indices: validation photographs, int64 [N].
        config: size of the photographs and number of labels.
    """

    source: LabeledPhotographs
    indices: NDArray[np.int64] = field(repr=False)
    config: DataConfig

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Example:
        """Build the example of one photograph.

        Raises:
            SohesError: if its pixels or labels cannot be read.
            IndexError: if the number is out of range.
        """
        record = self.source.record(int(self.indices[number]))
        crop = full_crop(record.height, record.width, self.config.image_size)
        return _example(number, self.source, record, crop, self.config, None)


def split_photographs(count: int, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split photographs 0 ... count - 1 at random.

    Returns:
        Training photographs, int64 [count - held_out], and validation photographs, int64 [held_out], both ascending.

    Raises:
        UsageError: if no photograph would remain for training.
    """
    if held_out >= count:
        raise UsageError(
            f"data.validation holds out {held_out:,} of {count:,} photographs and leaves none for training.",
            f"Give --set data.validation=... less than {count:,} (0 holds none out), or label more photographs.",
        )
    order = np.random.default_rng((seed, _SPLIT)).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _example(
    number: int,
    source: LabeledPhotographs,
    record: LabelRecord,
    crop: Crop,
    config: DataConfig,
    rng: Generator | None,
    views: ViewsConfig | None = None,
) -> Example:
    masks, parents = crop_targets(record, crop, config, rng)  # before the pixels: damaged labels fail faster
    weak_crop = None if views is None or rng is None else _draw_weak_crop(crop, config, rng, views)
    pixels = source.pixels(record, max(c.working_size for c in (crop, weak_crop) if c is not None))
    weak = None if weak_crop is None else WeakView(torch.from_numpy(weak_crop.cut(pixels)), weak_crop, crop)
    return Example(number, record.file_name, torch.from_numpy(crop.cut(pixels)), masks, parents, weak=weak)


def _draw_weak_crop(student: Crop, config: DataConfig, rng: Generator, views: ViewsConfig) -> Crop:
    """Draw the teacher's crop; last, so that all other draws equal those of phase 2."""
    if views.weak == "crop":
        return student
    whole = full_crop(student.source_height, student.source_width, config.image_size)
    return replace(whole, flipped=bool(rng.random() < views.weak_flip))
