"""The memory that a piece of work needs: at its highest, in a process of its own that does nothing else.

On a GPU the memory of all tensors. On a CPU the resident memory above what the libraries and inputs take, as Linux
counts it (VmHWM - VmRSS before the work): what a user's machine must have, whichever library asked for it.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_benchmarks.threads import limited_threads

if TYPE_CHECKING:
    from sohes_benchmarks.rows import Case
    from sohes_benchmarks.workload import Benchmark, Device, Plan

__all__ = ["process_memory"]

_CALLS = 2  # an optimizer has its state from the first step on


def process_memory(benchmark: Benchmark, case: Case, plan: Plan, provider: str) -> int | None:
    """Bytes that a provider holds at most while it is prepared and called twice.

    Args:
        benchmark: of functions that another process can import.
        case: one of its cases.
        plan: gives device and threads.
        provider: one of the workload's, by name.

    Returns:
        None where the system does not tell.

    Raises:
        BrokenProcessPool: if the process was killed, as happens where memory does not suffice.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, benchmark, case, plan, provider).result()


def _measured(benchmark: Benchmark, case: Case, plan: Plan, name: str) -> int | None:
    with limited_threads(plan.threads):
        workload = benchmark.workload(case, plan)
        (provider,) = (provider for provider in workload.providers if provider.name == name)
        before = _status_bytes("VmRSS")
        call = provider.prepare()
        for _ in range(_CALLS):
            call()
        peak = _peak(plan.device, before)
        workload.close()
    return peak


def _peak(device: Device, before: int | None) -> int | None:
    """Peak memory of this process: of a GPU, or of the host above the start."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = _status_bytes("VmHWM")
    return None if before is None or peak is None else peak - before


def _status_bytes(name: str) -> int | None:
    """A line of this process's status in bytes; None on a system other than Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
