"""Which photograph a sample shows, and its source of random numbers, from the seed of the run and the number of the sample alone."""

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
    """Which photograph a sample shows: each epoch is a permutation of its own.

    Args:
        number: of the sample in the run, from 0.
        photographs: how many there are.
        seed: of the run.
    """
    epoch, place = divmod(number, photographs)
    return int(_order(epoch, photographs, seed)[place])


def sample_generator(number: int, seed: int) -> np.random.Generator:
    """The source of everything that is drawn to make a sample."""
    return np.random.default_rng((seed, 1, number))


def first_readable(read: Callable[[int], S], index: int, photographs: int) -> tuple[S, tuple[str, ...]]:
    """Read a photograph, or the next one that can be read.

    Args:
        read: reads one by its index; raises SohesError if it cannot be read.
        index: of the photograph.
        photographs: how many there are; the first follows the last.

    Returns:
        What was read, and the messages of those that could not be.

    Raises:
        SohesError: if twenty in a row, or all, cannot be read.
    """
    errors: list[str] = []
    for attempt in range(min(_REPLACEMENTS, photographs)):
        try:
            return read((index + attempt) % photographs), tuple(errors)
        except SohesError as error:
            errors.append(str(error))
    raise SohesError(
        f"{len(errors)} photographs in a row cannot be read; the last: {errors[-1]}", "Mend or remove them."
    )


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def _order(epoch: int, photographs: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, 0, epoch)).permutation(photographs)
