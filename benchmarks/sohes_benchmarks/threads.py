"""One number of threads for everything that computes on the host, and the old ones back afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["limited_threads"]


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Limit PyTorch, BLAS, OpenMP, OpenCV and numba to `count` threads inside the block."""
    import cv2
    import numba
    import scipy.linalg  # noqa: F401 - loads the library whose threads are limited next
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads(), cv2.getNumThreads(), numba.get_num_threads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    numba.set_num_threads(min(count, before[2]))
    try:
        with threadpool_limits(limits=count):
            yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
        numba.set_num_threads(before[2])
