"""The run itself: each case of each benchmark, each of its providers first checked and only then timed.

A provider whose result differs from the truth gets a row that says how far, and no time; one that raises gets a row
with the message, and the others go on; one that cannot run here, or for which there is no truth, gets a row with the
reason.
"""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sohes_benchmarks.conditions import conditions, device_name, package_version
from sohes_benchmarks.kernels import (
    ancestor_loss,
    deformable_attention,
    mask_intersection,
    region_merging,
    run_intersection,
)
from sohes_benchmarks.limits import measure_limits
from sohes_benchmarks.rows import Results, Row
from sohes_benchmarks.stages import correct, evaluate, explore, segment, train
from sohes_benchmarks.threads import limited_threads
from sohes_benchmarks.timing import time_device_call, time_host_call, time_in_turns
from sohes_benchmarks.workload import Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sohes_benchmarks.limits import Limits
    from sohes_benchmarks.rows import Case
    from sohes_benchmarks.timing import Timing
    from sohes_benchmarks.workload import Benchmark, Plan, Workload

__all__ = ["BENCHMARKS", "empty_results", "measure_workload", "run_suite"]

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        region_merging.BENCHMARK,
        ancestor_loss.BENCHMARK,
        deformable_attention.BENCHMARK,
        mask_intersection.BENCHMARK,
        run_intersection.BENCHMARK,
        explore.BENCHMARK,
        evaluate.BENCHMARK,
        train.BENCHMARK,
        correct.BENCHMARK,
        segment.BENCHMARK,
    )
}
_LIMIT_SECONDS = 0.5
_LONGEST_MESSAGE = 300


def empty_results(plan: Plan) -> Results:
    """The results of a run that has not begun: its conditions."""
    date = datetime.now(UTC).date().isoformat()
    return Results(conditions(plan.device) | {"threads": plan.threads, "quick": plan.quick, "date": date})


def run_suite(
    plan: Plan,
    results: Results,
    benchmarks: Sequence[Benchmark] | None = None,
    announce: Callable[[Case, int, int], None] | None = None,
) -> None:
    """Measure the device's limits and every case, adding to `results`, which hold what is done when the run is
    interrupted.

    Args:
        plan: how the run is done.
        results: what `empty_results` made.
        benchmarks: what is run; None for those that the plan names.
        announce: told of each case before it is run, with its number from 0 on and the number of all.
    """
    start = time.monotonic()
    chosen = [BENCHMARKS[name] for name in plan.names] if benchmarks is None else list(benchmarks)
    if notes := {benchmark.name: benchmark.note for benchmark in chosen if benchmark.note}:
        results.conditions["notes"] = notes
    with limited_threads(plan.threads):
        limits = measure_limits(plan.device, plan.threads, min(plan.seconds, _LIMIT_SECONDS))
        results.limits = limits.to_json()
        cases = [(benchmark, case) for benchmark in chosen for case in benchmark.cases(plan)]
        commit = str(results.conditions["commit"])
        for number, (benchmark, case) in enumerate(cases):
            if announce is not None:
                announce(case, number, len(cases))
            is_late = plan.deadline_s is not None and time.monotonic() - start >= plan.deadline_s
            for row in [_late_row(case, plan)] if is_late else _measure_case(benchmark, case, plan, limits):
                results.rows.append(dataclasses.replace(row, commit=commit))
    results.is_complete = True


def _measure_case(benchmark: Benchmark, case: Case, plan: Plan, limits: Limits) -> Iterator[Row]:
    try:
        workload = benchmark.workload(case, plan)
    except Exception as error:
        message = f"the inputs could not be made ({_message(error)})"
        yield _row(case, Provider("reference", _nothing, device=plan.device), status="failed", message=message)
        return
    try:
        yield from measure_workload(workload, plan, limits)
    finally:
        workload.close()


def measure_workload(workload: Workload, plan: Plan, limits: Limits) -> Iterator[Row]:
    """Check and time the providers of one workload.

    Yields:
        A row a provider, in order.
    """
    reference_ms: float | None = None
    try:
        truth = [workload.truth()] if workload.truth else []
    except Exception as error:
        reason = f"the result to hold it against could not be computed ({_message(error)})"
        yield from (_row(workload.case, provider, status="failed", message=reason) for provider in workload.providers)
        return
    rows = _measured_in_turns if workload.in_turns else _measured_one_by_one
    for row in rows(workload, truth, plan, limits):
        if row.provider == workload.providers[0].name:
            reference_ms = row.item_ms
        yield dataclasses.replace(
            row, ratio_to_reference=reference_ms / row.item_ms if reference_ms and row.item_ms else None
        )


def _measured_one_by_one(workload: Workload, truth: list[Any], plan: Plan, limits: Limits) -> Iterator[Row]:
    for provider in workload.providers:
        row, call = _checked(provider, workload, truth)
        if call is not None:
            try:
                row = _timed_row(provider, _timed(call, provider, plan), workload, limits)
            except Exception as error:
                row = _failed_row(workload, provider, error)
        yield row


def _measured_in_turns(workload: Workload, truth: list[Any], plan: Plan, limits: Limits) -> Iterator[Row]:
    """Check all providers, and then time those that are right together."""
    rows, calls, peaks = [], {}, {}
    for index, provider in enumerate(workload.providers):
        row, call = _checked(provider, workload, truth)
        try:
            peaks[index] = workload.memory(provider.name) if workload.memory and call is not None else None
        except Exception as error:
            row, call = _failed_row(workload, provider, error), None
        rows.append(row)
        if call is not None:
            calls[index] = call
    try:
        for index, timing in zip(calls, _timed_in_turns(list(calls.values()), plan), strict=True):
            row = _timed_row(workload.providers[index], timing, workload, limits)
            rows[index] = dataclasses.replace(row, peak_memory_bytes=peaks[index])
    except Exception as error:
        for index in calls:
            rows[index] = _failed_row(workload, workload.providers[index], error)
    yield from rows


def _checked(provider: Provider, workload: Workload, truth: list[Any]) -> tuple[Row, Callable[[], Any] | None]:
    """Hold a provider's result against the truth, or make it the truth if there is none yet.

    Returns:
        What there is to say if it is not timed, and the call to time, or None if that must not be done.
    """
    is_first = provider is workload.providers[0]
    obstacle = provider.obstacle or (
        "" if truth or is_first else "there is no result of the reference to hold it against"
    )
    untimed = _row(workload.case, provider, status="not run", message=obstacle)
    if obstacle:
        return untimed, None
    try:
        call = provider.prepare()
        result = (provider.evidence or call)()
        if not truth:
            truth.append(result)
        difference = workload.difference(result, truth[0])
    except Exception as error:
        return _failed_row(workload, provider, error), None
    return (dataclasses.replace(untimed, status="wrong", message=difference), None) if difference else (untimed, call)


def _timed_row(provider: Provider, timing: Timing, workload: Workload, limits: Limits) -> Row:
    steps = provider.steps() if provider.steps else {}
    return _row(workload.case, provider, status="ok", steps_ms=steps, **_times(timing, provider, workload, limits))


def _failed_row(workload: Workload, provider: Provider, error: Exception) -> Row:
    return _row(workload.case, provider, status="failed", message=_message(error))


def _timed(call: Callable[[], Any], provider: Provider, plan: Plan) -> Timing:
    if provider.device == "cuda":
        return time_device_call(call, plan.seconds)
    return time_host_call(call, plan.seconds, plan.threads)


def _timed_in_turns(calls: Sequence[Callable[[], Any]], plan: Plan) -> list[Timing]:
    return time_in_turns(calls, plan.seconds, plan.rounds, plan.threads, on_gpu=plan.device == "cuda") if calls else []


def _times(timing: Timing, provider: Provider, workload: Workload, limits: Limits) -> dict[str, Any]:
    """The columns that come from a clock or are compared with it."""
    median = timing.percentile(50)
    n_bytes, n_flops = provider.items * workload.compulsory_bytes, provider.items * workload.compulsory_flops
    has_limit = provider.device == limits.device and n_bytes > 0
    return {
        "median_ms": median,
        "p20_ms": timing.percentile(20),
        "p80_ms": timing.percentile(80),
        "wall_ms": timing.wall_ms,
        "clock": timing.clock,
        "runs": len(timing.times_ms),
        "peak_memory_bytes": timing.peak_memory_bytes,
        "compulsory_bytes": n_bytes or None,
        "compulsory_flops": n_flops if n_bytes else None,
        "fraction_of_limit": limits.least_ms(n_bytes, n_flops, workload.case.dtype) / median if has_limit else None,
    }


def _row(case: Case, provider: Provider, **columns: Any) -> Row:
    return Row(
        op=case.op,
        case=case.name,
        mode=case.mode,
        dtype=case.dtype,
        shapes=case.shapes,
        provider=provider.name,
        items=provider.items,
        device=device_name(provider.device),
        torch=package_version("torch"),
        triton=package_version("triton"),
        **columns,
    )


def _nothing() -> Callable[[], None]:
    return lambda: None


def _late_row(case: Case, plan: Plan) -> Row:
    return _row(
        case,
        Provider("every provider", _nothing, device=plan.device),
        status="not run",
        message="the time of the run was over",
    )


def _message(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
