"""`sohes bench`: how fast operations and stages are on this machine, each checked before it is timed."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path  # noqa: TC003 (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sohes_cli.errors import SohesError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_benchmarks.rows import Results
    from sohes_benchmarks.workload import Device, Plan

__all__ = ["BenchDevice", "bench"]

_QUICK_DEADLINE_S = (
    40.0  # after it no case is begun, so that a quick run ends within a minute where all loops are yet to be compiled
)


class BenchDevice(StrEnum):
    """Where operations are measured; auto is the GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Operations and stages, such as region_merging or explore; all by default.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small cases, within a minute.")] = False,
    device: Annotated[
        BenchDevice, typer.Option(help="Device of the operations; auto: the GPU if there is one.")
    ] = BenchDevice.auto,
    threads: Annotated[int, typer.Option(min=1, help="Threads of what runs on the processor.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", show_default=False)] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Picture to write, .png, .svg or .pdf.", show_default=False)
    ] = None,
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
    """Run a plan, print its results and write the files, also when it is interrupted."""
    from sohes_benchmarks.suite import empty_results, run_suite
    from tqdm import tqdm

    results = empty_results(plan)
    try:
        with tqdm(desc="measuring", unit="case", disable=not sys.stderr.isatty(), leave=False) as progress:
            run_suite(
                plan,
                results,
                announce=lambda case, number, total: _advance(progress, f"{case.op}, {case.name}", number, total),
            )
    finally:
        _show(results, as_json, out, figure)
    if not results.is_sound:
        bad = [row for row in results.rows if row.status in ("wrong", "failed")]
        first = f"{bad[0].provider} on {bad[0].op}, {bad[0].case}: {bad[0].message}"
        raise SohesError(
            f"{len(bad)} of {len(results.rows)} measurements are wrong or failed, first {first}.",
            "The notes name all of them.",
        )


def _advance(progress: Any, name: str, number: int, total: int) -> None:
    progress.total = total
    progress.update(number - progress.n)
    progress.set_postfix_str(name)


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
    """The names without repeats, or all of them."""
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
