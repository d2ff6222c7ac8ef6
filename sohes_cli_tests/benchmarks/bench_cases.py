"""Benchmarks of a few lines, with providers that are right, wrong or broken, for tests of the harness."""

from __future__ import annotations

from typing import Any

import numpy as np
from sohes_benchmarks.rows import Case
from sohes_benchmarks.workload import Benchmark, Plan, Provider, Workload

QUICK = Plan(("region_merging",), quick=True, device="cpu", threads=1)
SQUARES = Case("region_merging", "squares", "forward", "int64", {"numbers": (100,)})
NUMBERS = np.arange(100)


def provider(name: str, result: Any, **options: Any) -> Provider:
    """One that returns a result, or raises it if it is an exception."""

    def call() -> Any:
        if isinstance(result, Exception):
            raise result
        return result.copy()

    return Provider(name, lambda: call, **options)


def difference(result: Any, truth: Any) -> str:
    wrong = int((result != truth).sum())
    return f"{wrong} numbers differ" if wrong else ""


def squares(*providers: Provider, **options: Any) -> Workload:
    return Workload(SQUARES, providers, difference, **options)


def benchmark(*workloads: Workload) -> Benchmark:
    """A benchmark whose cases are those of the workloads, in order."""
    waiting = list(workloads)
    return Benchmark("region_merging", lambda _: [workload.case for workload in workloads], lambda *_: waiting.pop(0))


RIGHT = provider("reference", NUMBERS**2)
WRONG = provider("heapq", NUMBERS**2 + (NUMBERS == 7))
BROKEN = provider("triton", ZeroDivisionError("no [bold] luck"))
ABSENT = provider("torch.compile", NUMBERS, obstacle="there is none")
FAST = provider("cpu", NUMBERS**2)
MEGABYTES = 60


def _filled(megabytes: int) -> Any:
    """A call that fills memory and lets go of it."""
    return lambda: np.ones(megabytes * 2**17).sum()


def _filling_workload(case: Case, _plan: Plan) -> Workload:
    providers = tuple(Provider(name, lambda n=n: _filled(n)) for name, n in (("little", 1), ("much", MEGABYTES)))
    return Workload(case, providers, difference)


def _filling_cases(_plan: Plan) -> list[Case]:
    return [SQUARES]


FILLING = Benchmark("region_merging", _filling_cases, _filling_workload)
"""Its providers need 1 and `MEGABYTES` MB."""
