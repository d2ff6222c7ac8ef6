"""Photographs and labels by number -> examples, whose crop and labels follow from the run's seed and the number alone.

So an example is the same whichever worker or process makes it and however often a run was stopped. Examples for validation hold nothing
random: the whole photograph and its best-scoring labels.
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

_SPLIT = 2  # stream of random numbers of a run's seed; 0 and 1 are those of `sohes_cli.training.loading`


@dataclass(frozen=True, eq=False)
class TrainingExamples:
    """Crops by their number in the run, counted over all epochs; each epoch shows every photograph once.

    Args:
        source: the photographs.
        indices: those that are trained on, int64 [N].
        config: crops and labels.
        seed: of the run.
        views: of phase 3, whose examples also have what its teacher sees; their crops and labels are those of phase 2.
    """

    source: LabeledPhotographs
    indices: NDArray[np.int64] = field(repr=False)
    config: DataConfig
    seed: int
    views: ViewsConfig | None = None

    def __getitem__(self, number: int) -> Example:
        """The example of a photograph, or of the next one whose pixels and labels can be read; its errors name the others.

        Raises:
            SohesError: if twenty in a row, or all, cannot be read.
        """
        photographs = len(self.indices)
        place = photograph_of(number, photographs, self.seed)
        example, errors = first_readable(lambda p: self._example(number, int(self.indices[p])), place, photographs)
        return replace(example, errors=errors)

    def _example(self, number: int, index: int) -> Example:
        record, rng = self.source.record(index), sample_generator(number, self.seed)
        crop = draw_crop(record.height, record.width, self.config, rng)
        return _example(number, self.source, record, crop, self.config, rng, self.views)


@dataclass(frozen=True, eq=False)
class ValidationExamples:
    """Whole photographs and their best-scoring labels by number, from 0.

    Args:
        source: the photographs.
        indices: those that are measured, int64 [N].
        config: size of the photographs and number of labels.
    """

    source: LabeledPhotographs
    indices: NDArray[np.int64] = field(repr=False)
    config: DataConfig

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Example:
        """The example of one photograph.

        Raises:
            SohesError: if its pixels or labels cannot be read.
            IndexError: if there is no such photograph.
        """
        record = self.source.record(int(self.indices[number]))
        crop = full_crop(record.height, record.width, self.config.image_size)
        return _example(number, self.source, record, crop, self.config, None)


def split_photographs(count: int, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the photographs that are left out of training.

    Args:
        count: of all photographs.
        held_out: how many are left out, see `DataConfig.validation_of`.
        seed: of the run.

    Returns:
        The photographs to train on, int64 [count - held_out], and those left out, int64 [held_out], both ascending.

    Raises:
        UsageError: if none would be left to train on.
    """
    if held_out >= count:
        message = (
            f"data.validation leaves nothing to train on: {held_out:,} of {count:,} photographs would be held out."
        )
        raise UsageError(
            message,
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
    """The example of a crop; labels come first, since they are read faster than pixels are decoded, should one be damaged."""
    masks, parents = crop_targets(record, crop, config, rng)
    seen = None if views is None or rng is None else _weak_crop(crop, config, rng, views)
    pixels = source.pixels(record, max(c.working_size for c in (crop, seen) if c is not None))
    weak = None if seen is None else WeakView(torch.from_numpy(seen.cut(pixels)), seen, crop)
    return Example(number, record.file_name, torch.from_numpy(crop.cut(pixels)), masks, parents, weak=weak)


def _weak_crop(student: Crop, config: DataConfig, rng: Generator, views: ViewsConfig) -> Crop:
    """What the teacher sees beside the student's crop; drawn last, so that all else is drawn as in phase 2."""
    if views.weak == "crop":
        return student
    whole = full_crop(student.source_height, student.source_width, config.image_size)
    return replace(whole, flipped=bool(rng.random() < views.weak_flip))
