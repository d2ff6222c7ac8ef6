"""`sohes bench`: what it refuses, what it prints and writes, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sohes_benchmarks.rows import Case
from sohes_benchmarks.suite import BENCHMARKS
from sohes_benchmarks.workload import Benchmark, Provider, Workload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["region_mergin"], ["'region_mergin'", "Did you mean 'region_merging'?", "deformable_attention", "evaluate"]),
        (["--threads", "1000"], ["--threads 1000", "Give 1 to"]),
        (["--out", "missing/bench.json"], ["no folder", "missing"]),
        (["--out", "bench.png"], ["'.png'", ".json"]),
        (["--figure", "bench.json"], ["'.json'", ".svg"]),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_measured(
    sohes: Callable, arguments: list[str], words: list[str]
) -> None:
    start = time.monotonic()
    result = sohes("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert all(word in result.err for word in words)
    assert time.monotonic() - start < 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing(sohes: Callable) -> None:
    result = sohes("bench", "--device", "cuda")
    assert result.code == 2
    assert "no CUDA GPU" in result.err


def test_a_quick_run_of_one_operation(sohes: Callable, tmp_path: Path) -> None:
    out, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    result = sohes("bench", "run_intersection", "--quick", "--device", "cpu", "--out", out, "--figure", figure)
    assert result.code == 0, result.err
    assert "run_intersection" in result.out
    assert "Limits measured on" in result.out
    content = json.loads(out.read_text())
    assert content["is_complete"]
    assert content["conditions"]["quick"]
    assert {row["provider"]: row["status"] for row in content["rows"]} == dict.fromkeys(
        ("reference", "pycocotools", "cpu"), "ok"
    )
    for row in content["rows"]:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["ratio_to_reference"] > 0
        assert row["fraction_of_limit"] > 0
    assert figure.stat().st_size > 5000


def test_json_is_all_that_stdout_holds(sohes: Callable, tmp_path: Path) -> None:
    result = sohes(
        "bench",
        "run_intersection",
        "run_intersection",
        "--quick",
        "--device",
        "cpu",
        "--json",
        "--out",
        tmp_path / "a.json",
    )
    assert json.loads(result.out) == json.loads((tmp_path / "a.json").read_text())
    assert len(json.loads(result.out)["rows"]) == 3
    assert "Wrote" in result.err


def zeros(*providers: Provider) -> Benchmark:
    """A benchmark of one case whose right result is three zeros."""
    case = Case("run_intersection", "zeros", "forward", "int64", {"numbers": (3,)})
    workload = Workload(case, providers, lambda result, truth: "" if np.array_equal(result, truth) else "all differ")
    return Benchmark("run_intersection", lambda _: [case], lambda *_: workload)


REFERENCE = Provider("reference", lambda: lambda: np.zeros(3))


def test_a_wrong_and_a_broken_provider_are_reported_and_fail_the_run(
    sohes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_error() -> None:
        raise RuntimeError("out of luck")

    wrong, broken = Provider("wrong one", lambda: lambda: np.ones(3)), Provider("broken one", lambda: raise_error)
    monkeypatch.setitem(
        BENCHMARKS,
        "run_intersection",
        zeros(REFERENCE, wrong, broken, dataclasses.replace(REFERENCE, name="right one")),
    )
    result = sohes("bench", "run_intersection", "--quick", "--device", "cpu", "--out", tmp_path / "a.json")
    assert result.code == 1
    assert "2 of 4 measurements are wrong or failed" in result.err
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["ok", "wrong", "failed", "ok"]
    assert [row["median_ms"] is None for row in rows] == [False, True, True, False]
    assert "out of luck" in result.out


def test_ctrl_c_leaves_what_was_measured(sohes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = Provider("interrupted", lambda: lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setitem(BENCHMARKS, "run_intersection", zeros(REFERENCE, interrupted, REFERENCE))
    result = sohes(
        "bench",
        "run_intersection",
        "--quick",
        "--device",
        "cpu",
        "--out",
        tmp_path / "a.json",
        "--figure",
        tmp_path / "a.svg",
    )
    assert result.code == 130
    assert "Interrupted." in result.err
    assert "The run was interrupted" in result.out
    content = json.loads((tmp_path / "a.json").read_text())
    assert not content["is_complete"]
    assert [row["provider"] for row in content["rows"]] == ["reference"]
    assert (tmp_path / "a.svg").exists()
