"""Shared parts of stage scripts: options, table, JSON file and picture."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_benchmarks.figure import draw_figure
from sohes_benchmarks.outputs import RESULTS_SUFFIXES, check_output, write_results
from sohes_benchmarks.report import notes, shown_ratio
from sohes_benchmarks.suite import empty_results, run_suite
from sohes_benchmarks.workload import Plan
from sohes_cli.training.config import TRAIN_PRESETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_benchmarks.rows import Case, Results
    from sohes_benchmarks.workload import Benchmark

__all__ = ["options", "run_stage"]


def options(description: str) -> argparse.ArgumentParser:
    """The options that the scripts have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--presets", nargs="+", choices=TRAIN_PRESETS, help="of sohes train, whose models are measured")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of what runs on the processor; with 1 its clock is read, else the wall's",
    )
    parser.add_argument("--quick", action="store_true", help="the smallest case, within a minute")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; a picture is written beside it")
    return parser


def run_stage(benchmark: Benchmark, arguments: argparse.Namespace, cases: Sequence[Case] = ()) -> Results:
    """Measure a stage, print its table and write its file and picture, also when the run is interrupted.

    Args:
        benchmark: the stage.
        arguments: parsed by `options`.
        cases: what is measured; those of the plan if there are none.

    Raises:
        UsageError: if the file could not be written.
        SystemExit: at the end, if a provider was wrong or failed.
    """
    check_output("--out", arguments.out, RESULTS_SUFFIXES)
    plan = Plan((benchmark.name,), arguments.quick, arguments.device, arguments.threads)
    chosen = dataclasses.replace(benchmark, cases=lambda _: cases) if cases else benchmark
    results = empty_results(plan)
    try:
        run_suite(
            plan,
            results,
            [chosen],
            announce=lambda case, number, total: print(f"{number + 1} of {total}: {case.name}", flush=True),
        )
    finally:
        write_results(arguments.out, results)
        draw_figure(arguments.out.with_suffix(".png"), results)
        print_table(results)
    if not results.is_sound:
        raise SystemExit(1)
    return results


def print_table(results: Results) -> None:
    """Print throughput, latency percentiles, ratio and memory of each provider, and the notes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{results.conditions['device']}, {results.conditions['threads']} thread(s), commit "
        f"{results.conditions['commit']}"
    )
    for column in ("case", "dtype", "provider"):
        table.add_column(column)
    for column in ("images a second", "seconds an image", "20 to 80%", "times as fast", "MB"):
        table.add_column(column, justify="right")
    for row in results.rows:
        seconds = [time / row.items / 1000 for time in (row.median_ms, row.p20_ms, row.p80_ms) if time]
        numbers = (
            [f"{1 / seconds[0]:.3g}", f"{seconds[0]:.3g}", f"{seconds[1]:.3g} to {seconds[2]:.3g}"]
            if seconds
            else ["-"] * 3
        )
        memory = "-" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:,.0f}"
        table.add_row(row.case, row.dtype, row.provider, *numbers, shown_ratio(row), memory)
    console = Console(width=150, highlight=False)
    console.print(table)
    for note in notes(results.rows):
        console.print(f"Note: {note}", markup=False)
