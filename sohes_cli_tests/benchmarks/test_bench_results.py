"""Rows as JSON and back, the report, the picture, and the files that are refused before a run."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import pytest
from bench_cases import ABSENT, BROKEN, FAST, QUICK, RIGHT, WRONG, benchmark, squares
from rich.console import Console
from sohes_benchmarks.conditions import conditions
from sohes_benchmarks.figure import draw_figure
from sohes_benchmarks.outputs import as_text, check_output, write_results
from sohes_benchmarks.report import notes, print_report, shown_ratio
from sohes_benchmarks.rows import Results, Row
from sohes_benchmarks.suite import empty_results, run_suite

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.runs.files import PICTURE_SUFFIXES

EVIDENCE = {
    "op",
    "case",
    "provider",
    "mode",
    "dtype",
    "shapes",
    "median_ms",
    "p20_ms",
    "p80_ms",
    "peak_memory_bytes",
    "device",
    "torch",
}
EVIDENCE |= {"triton", "commit"}


@pytest.fixture(scope="module")
def results() -> Results:
    """A run with a provider of each kind."""
    made = empty_results(QUICK)
    run_suite(
        QUICK,
        made,
        [benchmark(squares(RIGHT, WRONG, BROKEN, ABSENT, FAST, compulsory_bytes=800, compulsory_flops=100))],
    )
    return made


def printed(results: Results) -> str:
    stream = io.StringIO()
    print_report(results, Console(file=stream, highlight=False, width=80))
    return stream.getvalue()


def test_results_round_trip_through_json(results: Results) -> None:
    text = as_text(results)
    again = Results.from_json(json.loads(text))
    assert as_text(again) == text
    assert [(row.provider, row.shapes, row.message) for row in again.rows] == [
        (r.provider, r.shapes, r.message) for r in results.rows
    ]
    assert json.loads(text) == results.to_json()
    assert text.count("\n  {") == len(results.rows)  # a row a line
    assert Results.from_json(json.loads(as_text(empty_results(QUICK)))).rows == []


def test_every_row_carries_the_evidence_and_its_conditions(results: Results) -> None:
    for row in results.to_json()["rows"]:
        assert row.keys() >= EVIDENCE
        assert row["device"] == conditions()["processor"] != ""
        assert row["torch"] == results.conditions["packages"]["torch"]
    assert results.conditions.keys() >= {
        "device",
        "processor",
        "cores",
        "python",
        "packages",
        "commit",
        "threads",
        "quick",
        "date",
    }


def test_a_row_that_is_not_ok_holds_no_time(results: Results) -> None:
    right = next(row for row in results.rows if row.status == "ok")
    for status in ("wrong", "failed", "not run"):
        with pytest.raises(ValueError, match="must have no time"):
            dataclasses.replace(right, status=status)
    with pytest.raises(ValueError, match="has no time"):
        dataclasses.replace(right, median_ms=None)
    with pytest.raises(TypeError):
        Row.from_json({**right.to_json(), "speed": 1})


def test_the_report_shows_ratios_and_no_milliseconds_of_a_cpu(results: Results) -> None:
    text = printed(results)
    assert "WRONG" in text
    assert "FAILED" in text
    assert "ms an image" not in text
    assert "triton failed: ZeroDivisionError: no [bold] luck." in text  # no markup
    assert "torch.compile was not run for region_merging, because there is none." in text
    assert "Limits measured on" in text
    assert str(results.conditions["packages"]["torch"]) in text
    assert "interrupted" not in text
    assert "interrupted" in printed(dataclasses.replace(results, is_complete=False))


def test_the_report_of_a_stage_shows_memory_and_what_to_know_of_it(results: Results) -> None:
    rows = [dataclasses.replace(row, op="train", peak_memory_bytes=1_234_567_890) for row in results.rows]
    about = {"notes": {"train": "Its peer is another one."}}
    text = printed(dataclasses.replace(results, rows=rows, conditions=results.conditions | about))
    assert "1,235" in text
    assert "% of limit" not in text
    assert "train: Its peer is another one." in text


def test_the_report_of_a_gpu_shows_milliseconds_of_an_image(results: Results) -> None:
    rows = [dataclasses.replace(row, median_ms=264.0, items=132) if row.status == "ok" else row for row in results.rows]
    limits, found = {**results.limits, "device": "cuda"}, {**results.conditions, "cuda": "13.0", "driver": "580"}
    text = printed(dataclasses.replace(results, rows=rows, limits=limits, conditions=found))
    assert "ms an image" in text
    assert " 2 " in text
    assert "CUDA 13.0, driver 580" in text


def test_a_reason_is_noted_once() -> None:
    row = Row("explore", "a", "stage", "uint8", {}, "triton", "not run", message="it needs a GPU")
    rows = [row, dataclasses.replace(row, case="b"), dataclasses.replace(row, op="evaluate")]
    assert notes(rows) == ["triton was not run for explore, evaluate, because it needs a GPU."]


@pytest.mark.parametrize(
    ("ratio", "shown"), [(0.0312, "0.031"), (1.0, "1"), (9.94, "9.9"), (12.4, "12"), (2218.8, "2,219"), (None, "-")]
)
def test_ratios_are_shown_to_two_digits_or_whole(ratio: float | None, shown: str) -> None:
    row = Row("explore", "a", "stage", "uint8", {}, "sohes", "ok", median_ms=1.0, ratio_to_reference=ratio)
    assert shown_ratio(row) == shown


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_the_picture_is_written(results: Results, tmp_path, suffix: str) -> None:
    path = tmp_path / f"bench{suffix}"
    draw_figure(path, results)
    assert path.stat().st_size > 5000


def test_the_picture_names_operations_cases_and_conditions(results: Results, tmp_path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        draw_figure(tmp_path / "bench.svg", results)
    text = (tmp_path / "bench.svg").read_text()
    for word in ("region_merging", "squares", "WRONG", "FAILED", "cpu", str(results.conditions["device"])):
        assert word in text
    draw_figure(tmp_path / "empty.png", empty_results(QUICK))
    assert (tmp_path / "empty.png").stat().st_size > 0
    with pytest.raises(StoreError, match="cannot be written"):
        draw_figure(tmp_path / "missing" / "bench.png", results)


def test_files_that_cannot_be_written_are_refused(results: Results, tmp_path) -> None:
    check_output("--figure", tmp_path / "a.PNG", PICTURE_SUFFIXES)
    for path, reason in [
        (tmp_path / "a.gif", "format"),
        (tmp_path / "a", "format"),
        (tmp_path / "no" / "a.png", "no folder"),
    ]:
        with pytest.raises(UsageError, match=reason):
            check_output("--figure", path, PICTURE_SUFFIXES)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_output("--figure", tmp_path / "folder.png", PICTURE_SUFFIXES)
    write_results(tmp_path / "a.json", results)
    assert Results.from_json(json.loads((tmp_path / "a.json").read_text())).conditions == results.conditions


def test_the_package_imports_nothing_heavy() -> None:
    modules = "sohes_benchmarks.rows, sohes_benchmarks.workload, sohes_benchmarks.outputs, sohes_cli.commands.bench"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'numba', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
