"""Intersections in pixels of all pairs of two sets of run-length masks of one image, without decoding them.

    intersection(a, b) = sum over runs [s, e) of a of C_b(e) - C_b(s),  C_b(p) = pixels of b before pixel p

Given the running count C_b, a run of any length costs two look-ups, and a pair of masks the runs of one. COCO stores
runs: 1,000 masks against 50 need neither 1,000 decoded masks nor 50,000 merges of two run lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sohes_kernels.dispatch import can_always_run, choose_backend
from sohes_kernels.run_intersection.checks import MOST_PIXELS, check_runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MOST_PIXELS", "RunBackend", "RunMasks", "run_intersections"]

RunBackend = Literal["auto", "cpu", "reference"]


@dataclass(frozen=True)
class RunMasks:
    """N masks of one image as intervals of pixels in column-major order.

    Args:
        starts: first pixel of each interval, int64 [K], ascending within a mask.
        ends: one past its last pixel, int64 [K], above the start and at most the next start of the same mask.
        offsets: mask n has the intervals offsets[n] to offsets[n + 1] - 1, int64 [N + 1].
        height: rows of the image.
        width: columns of the image; height * width is at most `MOST_PIXELS`.

    Raises:
        ValueError: if a dtype, a length, the order of the intervals or the size of the image differs from the above.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    height: int
    width: int

    def __post_init__(self) -> None:
        check_runs(self)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def areas(self) -> NDArray[np.int64]:
        """Count the pixels of each mask, int64 [N]."""
        before = np.concatenate(([0], np.cumsum(self.ends - self.starts)))
        areas: NDArray[np.int64] = np.diff(before[self.offsets])
        return areas

    def __getitem__(self, index: NDArray[np.int64]) -> RunMasks:
        """Select masks by NumPy indexing, so that -1 is the last; IndexError for an index out of range."""
        index = np.arange(len(self))[index]
        lengths = np.diff(self.offsets)[index]
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        kept = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[index], lengths)
        return RunMasks(self.starts[kept], self.ends[kept], offsets, self.height, self.width)


def run_intersections(a: RunMasks, b: RunMasks, *, backend: RunBackend = "auto") -> NDArray[np.int64]:
    """Count the common pixels of every mask of `a` and every mask of `b`, int64 [N, M].

    Args:
        a: N masks; the cost is linear in their runs times M.
        b: M masks of the same image; the cost is linear in their spans.
        backend: "cpu" (numba), "reference" (a matrix product of the decoded masks) or "auto", which is "cpu".

    Raises:
        ValueError: if the masks are of images of different sizes, or the backend is unknown.
    """
    backends = {"cpu": can_always_run, "reference": can_always_run}
    chosen = choose_backend("run_intersection", backend, backends, is_on_gpu=False)
    if (a.height, a.width) != (b.height, b.width):
        sizes = f"{a.height} x {a.width} and of {b.height} x {b.width}"
        raise ValueError(f"masks of {sizes} pixels belong to different images")
    if chosen == "reference":
        from sohes_kernels.run_intersection.reference import run_intersections_reference

        return run_intersections_reference(a, b)
    from sohes_kernels.run_intersection.cpu import intersections

    return intersections(a.starts, a.ends, a.offsets, b.starts, b.ends, b.offsets, a.height)
