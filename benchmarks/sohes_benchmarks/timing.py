"""Time of a call: median and percentiles over many runs, on the clock of the device that does the work.

On a host with one thread that is the processor's clock, which other work on the machine stretches less than that of the
wall; with more threads it is the wall's. On a GPU it is that of device events, with the L2 cache overwritten between
runs (`triton.testing.do_bench`). Steps and photographs, which take long, are timed in turns, so that whatever else the
machine does meets all alike; on a GPU by the wall's clock until its work is done, for they compute on the host as well.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Timing", "time_device_call", "time_host_call", "time_in_turns"]

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
        """Percentile (0 to 100) of the times in milliseconds, interpolated."""
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


def time_in_turns(
    calls: Sequence[Callable[[], Any]], seconds: float, least: int, threads: int, *, on_gpu: bool
) -> list[Timing]:
    """Time calls one after the other in rounds, until `seconds` for each of them are spent.

    One round more warms up and does not count.

    Args:
        calls: what is timed.
        seconds: time to spend on each, by the wall.
        least: rounds at least.
        threads: how many of the host compute; 1 chooses the processor's clock, unless the calls use a GPU.
        on_gpu: whether a call ends only when the current GPU has nothing left to do.
    """
    rounds: list[list[tuple[float, float]]] = []
    spent_ms = 0.0
    gc.collect()
    while len(rounds) <= least or (spent_ms < 1000 * seconds * len(calls) and len(rounds) <= _MOST_RUNS):
        rounds.append([_clocked(call, on_gpu) for call in calls])
        spent_ms += sum(wall for _, wall in rounds[-1])
    times = np.array(rounds[1:])  # [rounds, calls, clocks]
    by_wall = on_gpu or threads > 1
    return [
        Timing(
            tuple(times[:, i, int(by_wall)].tolist()),
            "wall" if by_wall else "processor",
            float(np.median(times[:, i, 1])),
        )
        for i in range(len(calls))
    ]


def _clocked(call: Callable[[], Any], on_gpu: bool) -> tuple[float, float]:
    """Milliseconds of a call on the processor's clock and on the wall's."""
    _wait(on_gpu)
    start, start_wall = time.process_time(), time.perf_counter()
    call()
    _wait(on_gpu)
    return 1000 * (time.process_time() - start), 1000 * (time.perf_counter() - start_wall)


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        import torch

        torch.cuda.synchronize()


def time_device_call(call: Callable[[], Any], seconds: float) -> Timing:
    """Time calls that compute on the current GPU for about `seconds`, after a warm-up, and measure the memory of one
    more.

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
