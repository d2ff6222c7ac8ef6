"""Sampling of photographs: order of each epoch, random generator of each sample, and replacement of unreadable files.

All of it depends on the run's seed and the sample's number alone, so a resumed run draws the same samples.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sohes_cli.errors import SohesError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["first_readable", "photograph_of", "sample_generator"]

_REPLACEMENTS = 20

S = TypeVar("S")


def photograph_of(number: int, photographs: int, seed: int) -> int:
    """Return the photograph of a sample, by its number in the run; each epoch is a random permutation."""
    epoch, position = divmod(number, photographs)
    return int(_permutation(epoch, photographs, seed)[position])


@lru_cache(maxsize=2)  # a batch may span two epochs
def _permutation(epoch: int, photographs: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, 0, epoch)).permutation(photographs)


def sample_generator(number: int, seed: int) -> np.random.Generator:
    """Return the random generator of a sample."""
    return np.random.default_rng((seed, 1, number))


def first_readable(read: Callable[[int], S], index: int, photographs: int) -> tuple[S, tuple[str, ...]]:
    """Read a photograph, or the next readable one.

    Args:
        read: function of an index below `photographs` that raises SohesError if the photograph cannot be read.
        index: of the photograph; the first one follows the last.

    Returns:
        The result of `read`, and the error messages of unreadable photographs.

    Raises:
        SohesError: if twenty in a row, or all, cannot be read.
    """
    errors: list[str] = []
    for attempt in range(min(_REPLACEMENTS, photographs)):
        try:
            return read((index + attempt) % photographs), tuple(errors)
        except SohesError as error:
            errors.append(str(error))
    message = f"{len(errors)} photographs in a row cannot be read; the last: {errors[-1]}"
    raise SohesError(message, "Mend or remove them.")
