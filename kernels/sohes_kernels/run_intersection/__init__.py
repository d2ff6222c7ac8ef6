"""Pixels that masks share, for all pairs of two sets of run-length masks of one image, without decoding them to pixels.

    intersection(a, b) = sum over runs [s, e) of a of C_b(e) - C_b(s),  C_b(p) = pixels of b before pixel p

With the running count C_b at hand a run costs two look-ups, whatever its length, and a pair of masks costs the runs of one. COCO's masks
come as runs, so scores of 1,000 masks against 50 need neither 1,000 decoded masks nor 50,000 walks over two run lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sohes_kernels.dispatch import can_always_run, choose_backend

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MOST_PIXELS", "RunBackend", "RunMasks", "run_intersections"]

RunBackend = Literal["auto", "cpu", "reference"]
MOST_PIXELS = 2**31 - 1
"""Of one image, so that pixels can be counted in 32 bits."""


@dataclass(frozen=True)
class RunMasks:
    """N masks of one image as the intervals of pixels that they hold, pixels counted column by column.

    Args:
        starts: first pixel of each interval, int64 [K], within a mask ascending.
        ends: one past its last pixel, int64 [K], more than the start and at most the next start of the same mask.
        offsets: mask n holds the intervals offsets[n] to offsets[n + 1] - 1, int64 [N + 1].
        height: rows of the image.
        width: columns of the image; height * width is at most `MOST_PIXELS`.

    Raises:
        ValueError: if a dtype, a length, the order of the intervals or the size of the image is not as said above.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 0 or self.width < 0 or self.height * self.width > MOST_PIXELS:
            raise ValueError(f"an image must have 0 to {MOST_PIXELS} pixels, not {self.height} x {self.width}")
        for name in ("starts", "ends", "offsets"):
            array = getattr(self, name)
            if array.dtype != np.int64 or array.ndim != 1:
                raise ValueError(f"{name} must be a vector of int64, not {array.dtype} of shape {array.shape}")
        rises = len(self.offsets) > 0 and self.offsets[0] == 0 and bool((np.diff(self.offsets) >= 0).all())
        if not rises or not len(self.starts) == len(self.ends) == self.offsets[-1]:
            raise ValueError("offsets must rise from 0 to the number of intervals")
        # the end of one mask may lie behind the start of the next
        is_inner = np.ones(max(len(self.starts) - 1, 0), bool)
        borders = self.offsets[1:-1]
        is_inner[borders[(borders > 0) & (borders < len(self.starts))] - 1] = False
        ordered = (self.starts < self.ends).all() and (self.ends[:-1] <= self.starts[1:])[is_inner].all()
        inside = not len(self.starts) or (self.starts.min() >= 0 and self.ends.max() <= self.height * self.width)
        if not ordered or not inside:
            raise ValueError(
                f"intervals must be ascending, apart and within the {self.height * self.width} pixels of the image"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def areas(self) -> NDArray[np.int64]:
        """Pixels of each mask, int64 [N]."""
        before = np.concatenate(([0], np.cumsum(self.ends - self.starts)))
        areas: NDArray[np.int64] = np.diff(before[self.offsets])
        return areas

    def __getitem__(self, index: NDArray[np.int64]) -> RunMasks:
        """The masks at these positions, in this order; as in NumPy, -1 is the last one.

        Raises:
            IndexError: if there is no mask at a position.
        """
        index = np.arange(len(self))[index]
        lengths = np.diff(self.offsets)[index]
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        kept = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[index], lengths)
        return RunMasks(self.starts[kept], self.ends[kept], offsets, self.height, self.width)


def run_intersections(a: RunMasks, b: RunMasks, *, backend: RunBackend = "auto") -> NDArray[np.int64]:
    """Count the pixels shared by every mask of `a` with every mask of `b`.

    Args:
        a: N masks; the cost grows with their runs times M.
        b: M masks of the same image; the cost grows with their boxes.
        backend: "cpu" (numba), "reference" (a matrix product of the decoded masks) or "auto", which is "cpu".

    Returns:
        Shared pixels, int64 [N, M].

    Raises:
        ValueError: if the masks are of images of different sizes, or the backend is unknown.
    """
    chosen = choose_backend(
        "run_intersection", backend, {"cpu": can_always_run, "reference": can_always_run}, is_on_gpu=False
    )
    if (a.height, a.width) != (b.height, b.width):
        raise ValueError(
            f"masks of {a.height} x {a.width} and of {b.height} x {b.width} pixels belong to different images"
        )
    if chosen == "reference":
        from sohes_kernels.run_intersection.reference import run_intersections_reference

        return run_intersections_reference(a, b)
    from sohes_kernels.run_intersection.cpu import intersections

    return intersections(a.starts, a.ends, a.offsets, b.starts, b.ends, b.offsets, a.height)
