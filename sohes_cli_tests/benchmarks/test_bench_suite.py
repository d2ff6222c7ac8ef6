"""The harness: who is timed, who is not, and what the others get."""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np
import pytest
import torch
from bench_cases import (
    ABSENT,
    BROKEN,
    FAST,
    FILLING,
    MEGABYTES,
    NUMBERS,
    QUICK,
    RIGHT,
    SQUARES,
    WRONG,
    benchmark,
    provider,
    squares,
)
from sohes_benchmarks.limits import Limits, measure_limits
from sohes_benchmarks.memory import process_memory
from sohes_benchmarks.rows import NAMES, Results
from sohes_benchmarks.suite import BENCHMARKS, measure_workload, run_suite
from sohes_benchmarks.threads import limited_threads
from sohes_benchmarks.timing import Timing, time_host_call, time_in_turns
from sohes_benchmarks.workload import Plan

LIMITS = Limits("cpu", 1, 1e9, {"float32": 1e12})


def measured(*providers, **options):
    return {row.provider: row for row in measure_workload(squares(*providers, **options), QUICK, LIMITS)}


def test_only_what_was_checked_and_found_right_is_timed():
    rows = measured(RIGHT, WRONG, BROKEN, ABSENT, FAST)
    assert {name: row.status for name, row in rows.items()} == {
        "reference": "ok", "heapq": "wrong", "triton": "failed", "torch.compile": "not run", "cpu": "ok",
    }  # fmt: skip
    assert rows["heapq"].message == "1 numbers differ"
    assert rows["triton"].message == "ZeroDivisionError: no [bold] luck"
    assert rows["torch.compile"].message == "there is none"
    for name in ("heapq", "triton", "torch.compile"):
        assert rows[name].median_ms is None
        assert rows[name].ratio_to_reference is None
    assert rows["reference"].ratio_to_reference == 1
    assert rows["cpu"].ratio_to_reference == pytest.approx(rows["reference"].median_ms / rows["cpu"].median_ms)


def test_the_check_runs_on_every_provider_even_the_reference():
    rows = measured(WRONG, FAST, truth=lambda: NUMBERS**2)
    assert (rows["heapq"].status, rows["cpu"].status) == ("wrong", "ok")
    assert rows["cpu"].ratio_to_reference is None


def test_without_a_truth_nobody_is_timed():
    for first in (BROKEN, dataclasses.replace(RIGHT, obstacle="too large")):
        rows = measured(first, FAST)
        assert rows["cpu"].status == "not run"
        assert "hold it against" in rows["cpu"].message

    def fail():
        raise ValueError("no truth")

    rows = measured(RIGHT, FAST, truth=fail)
    assert {row.status for row in rows.values()} == {"failed"}
    assert all("no truth" in row.message for row in rows.values())


def test_times_of_providers_that_take_several_images_compare_an_image():
    rows = measured(RIGHT, dataclasses.replace(FAST, items=4), compulsory_bytes=10**6, compulsory_flops=10)
    ours = rows["cpu"]
    assert ours.item_ms == pytest.approx(ours.median_ms / 4)
    assert ours.ratio_to_reference == pytest.approx(rows["reference"].median_ms / ours.item_ms)
    assert ours.compulsory_bytes == 4 * 10**6
    assert ours.fraction_of_limit == pytest.approx(4.0 / ours.median_ms)  # 1 MB takes 1 ms at 1 GB/s


def test_what_is_checked_may_be_more_than_what_is_timed():
    rows = measured(RIGHT, dataclasses.replace(FAST, evidence=lambda: NUMBERS))
    assert rows["cpu"].status == "wrong"


def test_inputs_that_cannot_be_made_fail_their_case_alone_and_workloads_are_closed():
    closed = []

    def workload(case, _plan):
        if case.name == "broken":
            raise MemoryError("too large")
        return squares(RIGHT, BROKEN, close=lambda: closed.append(case.name))

    cases = [dataclasses.replace(SQUARES, name="broken"), SQUARES]
    made = dataclasses.replace(benchmark(), cases=lambda _: cases, workload=workload)
    results, told = Results({"commit": "abc1234"}), []
    run_suite(QUICK, results, [made], lambda case, number, total: told.append((case.name, number, total)))
    assert [(row.case, row.status) for row in results.rows] == [
        ("broken", "failed"),
        ("squares", "ok"),
        ("squares", "failed"),
    ]
    assert closed == ["squares"]
    assert told == [("broken", 0, 2), ("squares", 1, 2)]
    assert {row.commit for row in results.rows} == {"abc1234"}
    assert results.is_complete
    assert not results.is_sound
    assert Limits(**results.limits).copy_bytes_per_s > 0


def test_an_interrupted_run_keeps_what_it_has():
    def interrupt():
        raise KeyboardInterrupt

    results = Results({"commit": ""})
    with pytest.raises(KeyboardInterrupt):
        run_suite(
            QUICK, results, [benchmark(squares(RIGHT), squares(RIGHT, dataclasses.replace(FAST, evidence=interrupt)))]
        )
    assert [row.provider for row in results.rows] == ["reference", "reference"]
    assert not results.is_complete


def test_no_case_is_begun_after_the_deadline():
    results = Results({"commit": ""})
    run_suite(dataclasses.replace(QUICK, deadline_s=0.0), results, [benchmark(squares(RIGHT), squares(RIGHT))])
    assert [(row.provider, row.status) for row in results.rows] == [("every provider", "not run")] * 2
    assert "over" in results.rows[0].message
    assert results.is_complete
    assert results.is_sound


def test_percentiles_interpolate():
    timing = Timing((4.0, 1.0, 3.0, 2.0, 5.0, 6.0), "wall", 1.0)
    assert timing.percentile(50) == 3.5
    assert (timing.percentile(20), timing.percentile(80)) == (2.0, 5.0)
    assert Timing((2.5,), "wall", 1.0).percentile(20) == 2.5


def test_calls_are_repeated_within_the_time_and_the_first_only_warms_up():
    calls = []
    timing = time_host_call(lambda: calls.append(0), 0.02, threads=1)
    assert len(timing.times_ms) == len(calls) - 1 >= 10
    assert min(timing.times_ms) >= 0
    assert (timing.clock, timing.peak_memory_bytes) == ("processor", None)
    assert len(time_host_call(lambda: np.linalg.svd(np.ones((200, 200))), 0.0, threads=2).times_ms) == 1
    assert time_host_call(lambda: None, 0.0, threads=2).clock == "wall"


def test_calls_in_turns_alternate_and_the_first_round_only_warms_up():
    calls = []
    timings = time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 0.0, 3, threads=1, on_gpu=False)
    assert calls == ["a", "b"] * 4
    assert [(len(timing.times_ms), timing.clock, timing.peak_memory_bytes) for timing in timings] == [
        (3, "processor", None)
    ] * 2
    slow, fast = time_in_turns([lambda: time.sleep(0.02), lambda: None], 0.06, 1, threads=2, on_gpu=False)
    assert slow.clock == "wall"
    assert len(slow.times_ms) == len(fast.times_ms) > 2
    assert slow.percentile(50) >= 20 > fast.percentile(50)


def in_turns(*providers, **options):
    return measured(*providers, in_turns=True, **options)


def test_in_turns_only_what_was_checked_and_found_right_is_timed():
    rows = in_turns(RIGHT, WRONG, BROKEN, ABSENT, FAST)
    assert {name: row.status for name, row in rows.items()} == {
        "reference": "ok", "heapq": "wrong", "triton": "failed", "torch.compile": "not run", "cpu": "ok",
    }  # fmt: skip
    assert rows["cpu"].ratio_to_reference == pytest.approx(rows["reference"].median_ms / rows["cpu"].median_ms)
    assert rows["cpu"].runs == rows["reference"].runs >= QUICK.rounds
    rows = in_turns(ABSENT, RIGHT, truth=lambda: NUMBERS**2)
    assert rows["reference"].status == "ok"
    assert rows["reference"].ratio_to_reference is None
    assert {row.status for row in in_turns(BROKEN, FAST).values()} == {"failed", "not run"}


def test_a_call_that_fails_while_it_is_timed_in_turns_fails_those_that_take_turns_with_it():
    late = dataclasses.replace(BROKEN, evidence=lambda: NUMBERS**2)
    rows = in_turns(RIGHT, WRONG, late)
    assert {name: row.status for name, row in rows.items()} == {
        "reference": "failed",
        "heapq": "wrong",
        "triton": "failed",
    }
    assert "no [bold] luck" in rows["reference"].message


def test_memory_of_a_process_of_its_own_is_asked_of_those_that_are_right():
    def memory(name):
        if name == "cpu":
            raise MemoryError("it was killed")
        return 123

    rows = in_turns(RIGHT, WRONG, ABSENT, FAST, memory=memory)
    assert {name: row.peak_memory_bytes for name, row in rows.items()} == {
        "reference": 123,
        "heapq": None,
        "torch.compile": None,
        "cpu": None,
    }
    assert (rows["reference"].status, rows["cpu"].status) == ("ok", "failed")
    assert "it was killed" in rows["cpu"].message


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_of_a_process_is_that_of_the_work_and_not_of_the_libraries():
    peak = process_memory(FILLING, SQUARES, QUICK, "much")
    assert peak == pytest.approx(MEGABYTES * 2**20, rel=0.2)


def test_limits_of_this_machine_are_positive_and_bound_the_work():
    limits = measure_limits("cpu", 1, 0.02)
    assert limits.copy_bytes_per_s > 1e7
    assert limits.matrix_flops_per_s["float32"] > 1e7
    assert LIMITS.least_ms(10**6, 0, "float32") == pytest.approx(1.0)
    assert LIMITS.least_ms(0, 10**9, "bfloat16") == pytest.approx(1.0)  # no rate of its own
    assert LIMITS.least_ms(10**6, 10**10, "float32") == pytest.approx(10.0)


def test_threads_are_limited_inside_only():
    before = torch.get_num_threads()
    with limited_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_every_name_has_a_benchmark_with_distinct_cases():
    assert tuple(BENCHMARKS) == NAMES
    for name, made in BENCHMARKS.items():
        for plan in (
            QUICK,
            dataclasses.replace(QUICK, quick=False),
            Plan((name,), quick=False, device="cuda", threads=1),
        ):
            cases = made.cases(plan)
            assert cases
            assert {case.op for case in cases} == {name}
            assert len({(case.name, case.mode, case.dtype) for case in cases}) == len(cases)
        assert len(made.cases(QUICK)) <= len(made.cases(dataclasses.replace(QUICK, quick=False)))


def test_the_message_of_a_failure_is_one_short_line():
    rows = measured(RIGHT, provider("cpu", RuntimeError("a\nlong " * 200)))
    assert len(rows["cpu"].message) == 300
    assert "\n" not in rows["cpu"].message
