"""`sohes bench`: check and time operations and stages on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sohes_cli.commands.options import AsJson, argument, option
from sohes_cli.errors import SohesError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_benchmarks.rows import Case, Results
    from sohes_benchmarks.workload import Device, Plan

__all__ = ["BenchDevice", "bench"]

_QUICK_DEADLINE_S = 40.0  # no case starts after it: a quick run ends within a minute even if all loops must compile


class BenchDevice(StrEnum):
    """Device of the operations; auto is the GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def bench(
    names: Annotated[
        list[str] | None,
        argument("[NAME]...", "Operations and stages, such as region_merging or explore; all by default."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small cases, within a minute.")] = False,
    device: Annotated[BenchDevice, typer.Option(help="Device; auto: a GPU if any.")] = BenchDevice.auto,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    as_json: AsJson = False,
    out: Annotated[Path | None, option("JSON file to write.")] = None,
    figure: Annotated[Path | None, option("Picture to write, .png, .svg or .pdf.")] = None,
) -> None:
    """Measure operations and stages on this machine.

    Example: sohes bench --quick --out bench.json
    """
    from sohes_benchmarks.outputs import RESULTS_SUFFIXES, check_output

    from sohes_cli.runs.files import PICTURE_SUFFIXES

    chosen = _checked_names(names or ())
    _check_threads(threads)
    for flag, path, suffixes in (("--out", out, RESULTS_SUFFIXES), ("--figure", figure, PICTURE_SUFFIXES)):
        if path is not None:
            check_output(flag, path, suffixes)
    resolved = _resolved_device(device)
    from sohes_benchmarks.workload import Plan

    _run(Plan(chosen, quick, resolved, threads, _QUICK_DEADLINE_S if quick else None), as_json, out, figure)


def _run(plan: Plan, as_json: bool, out: Path | None, figure: Path | None) -> None:
    """Run a plan; print its results and write the files, after an interruption too."""
    from sohes_benchmarks.suite import empty_results, run_suite

    from sohes_cli.runs.progress import ProgressBar

    results = empty_results(plan)
    try:
        with ProgressBar(None, "case", name="measuring", leave=False) as bar:

            def announce(case: Case, number: int, total: int) -> None:
                bar.advance_to(number, total, f"{case.op}, {case.name}")

            run_suite(plan, results, announce=announce)
    finally:
        _show(results, as_json, out, figure)
    if not results.is_sound:
        bad = [row for row in results.rows if row.status in ("wrong", "failed")]
        first = f"{bad[0].provider} on {bad[0].op}, {bad[0].case}: {bad[0].message}"
        raise SohesError(
            f"{len(bad)} of {len(results.rows)} measurements are wrong or failed, first {first}.",
            "The notes name all of them.",
        )


def _show(results: Results, as_json: bool, out: Path | None, figure: Path | None) -> None:
    from sohes_benchmarks.figure import draw_figure
    from sohes_benchmarks.outputs import as_text, write_results
    from sohes_benchmarks.report import print_report

    if as_json:
        typer.echo(as_text(results), nl=False)
    else:
        print_report(results)
    if out is not None:
        write_results(out, results)
        typer.echo(f"Wrote {out}.", err=as_json)
    if figure is not None:
        draw_figure(figure, results)
        typer.echo(f"Wrote {figure}.", err=as_json)


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names without repeats, or all names."""
    from sohes_benchmarks.rows import NAMES

    for name in names:
        if name not in NAMES:
            raise UsageError(
                f"There is no benchmark {name!r}.{nearest(name, NAMES)}",
                f"Use {', '.join(NAMES)}, or none of them for all.",
            )
    return tuple(dict.fromkeys(names)) or NAMES


def _check_threads(threads: int) -> None:
    from sohes_cli.runs.processes import available_cores

    if threads > (cores := available_cores()):
        raise UsageError(f"--threads {threads}: this process may use {cores} cores.", f"Give 1 to {cores}.")


def _resolved_device(device: BenchDevice) -> Device:
    if device == BenchDevice.cpu:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == BenchDevice.cuda:
        raise UsageError(
            "--device cuda: PyTorch finds no CUDA GPU on this machine.",
            "Use --device cpu, or a machine with an NVIDIA GPU.",
        )
    return "cpu"
