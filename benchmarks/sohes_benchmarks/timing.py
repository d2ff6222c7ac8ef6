"""How long a call takes: median and percentiles over many runs, on the clock that fits where the work is done.

On a host with one thread that is the processor's clock, which other work on the machine stretches less than that of the wall; with more
threads it is the wall's. On a GPU it is that of device events, with the L2 cache overwritten between runs (`triton.testing.do_bench`).
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Timing", "time_device_call", "time_host_call"]

_MOST_RUNS = 200
_WARM_UP_SHARE = 0.25


@dataclass(frozen=True)
class Timing:
    """The times of repeated calls.

    Args:
        times_ms: milliseconds of each, on `clock`.
        clock: "processor", "wall" or "device".
        wall_ms: median on the clock of the wall.
        peak_memory_bytes: device memory at its highest during a call, less what was held before; None on a host.
    """

    times_ms: tuple[float, ...]
    clock: str
    wall_ms: float
    peak_memory_bytes: int | None = None

    def percentile(self, percent: float) -> float:
        """The time in milliseconds that `percent` (0 to 100) of the calls did not exceed, interpolated between two calls."""
        return float(np.percentile(self.times_ms, percent))


def time_host_call(call: Callable[[], Any], seconds: float, threads: int) -> Timing:
    """Time calls that compute on the host until `seconds` are spent.

    The first one warms up and does not count, unless it took so long that there is no other.

    Args:
        call: what is timed.
        seconds: time to spend, by the wall.
        threads: how many compute; 1 chooses the processor's clock.
    """
    processor: list[float] = []
    wall: list[float] = []
    gc.collect()
    while not wall or (sum(wall) < 1000 * seconds and len(wall) <= _MOST_RUNS):
        start, start_wall = time.process_time(), time.perf_counter()
        call()
        processor.append(1000 * (time.process_time() - start))
        wall.append(1000 * (time.perf_counter() - start_wall))
    counted = slice(1 if len(wall) > 1 else 0, None)
    times = processor if threads == 1 else wall
    return Timing(tuple(times[counted]), "processor" if threads == 1 else "wall", float(np.median(wall[counted])))


def time_device_call(call: Callable[[], Any], seconds: float) -> Timing:
    """Time calls that compute on the current GPU for about `seconds`, after a warm-up, and measure the memory of one more.

    Args:
        call: what is timed; its work must be on the current stream.
        seconds: time to spend on the timed calls.
    """
    import torch
    from triton.testing import do_bench

    times = do_bench(call, warmup=round(1000 * seconds * _WARM_UP_SHARE), rep=round(1000 * seconds), return_mode="all")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    wall_ms = 1000 * (time.perf_counter() - start)
    return Timing(tuple(times), "device", wall_ms, torch.cuda.max_memory_allocated() - before)
