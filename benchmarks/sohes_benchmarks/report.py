"""The results as tables for people: how many times as fast as the reference, and how near the device's limit.

Milliseconds are shown for a GPU only. On a CPU they depend on the machine more than on the program, so there they stay
in the JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_benchmarks.rows import NAMES, STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sohes_benchmarks.rows import Results, Row

__all__ = ["conditions_line", "limits_line", "notes", "print_report", "shown_ratio"]

_LEAST_WIDTH = 110
_VERDICTS = {"wrong": "WRONG", "failed": "FAILED"}


def print_report(results: Results, console: Console | None = None) -> None:
    """Print a table an operation, the notes, the device's limits and the conditions."""
    from rich.console import Console

    console = console or Console(highlight=False, soft_wrap=False)
    console.width = max(console.width, _LEAST_WIDTH)  # a long line is better than cut numbers
    on_gpu = results.limits.get("device") == "cuda"
    for name in NAMES:
        rows = [row for row in results.rows if row.op == name and row.status != "not run"]
        if rows:
            console.print(_table(name, rows, on_gpu))
    _print_others(results, console)


def _print_others(results: Results, console: Console) -> None:
    """Print notes, limits and conditions as plain text, without markup."""
    about: Any = results.conditions.get("notes", {})
    lines = [f"{name}: {note}" for name, note in about.items()] + [f"Note: {note}" for note in notes(results.rows)]
    if results.limits:
        lines.append(limits_line(results))
    lines.append(conditions_line(results))
    if not results.is_complete:
        lines.append("The run was interrupted: the cases above are those it came to.")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _table(name: str, rows: Sequence[Row], on_gpu: bool) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{name}, {rows[0].provider} = 1", title_justify="left")
    for column in ("case", "mode", "dtype", "provider"):
        table.add_column(column)
    is_stage = name in STAGES
    for column in (*(("ms an image",) if on_gpu else ()), "times as fast", "MB" if is_stage else "% of limit"):
        table.add_column(column, justify="right", no_wrap=True)
    previous: Row | None = None
    for index, row in enumerate(rows):
        is_new = previous is None or _case_of(row) != _case_of(previous)
        following = rows[index + 1] if index + 1 < len(rows) else None
        labels = [Text(text) for text in ((row.case, row.mode, row.dtype) if is_new else ("", "", ""))]
        numbers = [_milliseconds(row)] if on_gpu else []
        ends = following is not None and _case_of(following) != _case_of(row)
        table.add_row(
            *labels,
            Text(row.provider),
            *numbers,
            shown_ratio(row),
            (_megabytes if is_stage else _percent_of_limit)(row),
            end_section=ends,
        )
        previous = row
    return table


def _case_of(row: Row) -> tuple[str, str, str]:
    return row.case, row.mode, row.dtype


def _milliseconds(row: Row) -> str:
    return "-" if row.item_ms is None else f"{row.item_ms:.4g}"


def shown_ratio(row: Row) -> str:
    """The ratio to the reference, or in capitals what is wrong with the row."""
    if row.status != "ok":
        return _VERDICTS.get(row.status, row.status)
    ratio = row.ratio_to_reference
    if ratio is None:
        return "-"
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _percent_of_limit(row: Row) -> str:
    if row.fraction_of_limit is None:
        return "-"
    percent = 100 * row.fraction_of_limit
    return "in cache" if percent > 100 else f"{percent:.2g}"


def _megabytes(row: Row) -> str:
    return "-" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:,.0f}"


def notes(rows: Sequence[Row]) -> list[str]:
    """Why providers have no time: the wrong and the failed one by one, the others once for each reason."""
    lines = [
        f"{row.op}, {row.case}, {row.mode}, {row.dtype}: {row.provider} {row.status}: {row.message}."
        for row in rows
        if row.status in _VERDICTS
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.status == "not run":
            ops = reasons.setdefault((row.provider, row.message), [])
            ops.extend([] if row.op in ops else [row.op])
    return lines + [
        f"{provider} was not run for {', '.join(ops)}, because {reason}." for (provider, reason), ops in reasons.items()
    ]


def limits_line(results: Results) -> str:
    """The measured limits in a sentence."""
    limits = results.limits
    rates = ", ".join(f"{dtype} {_scaled(rate, 'FLOP/s')}" for dtype, rate in limits["matrix_flops_per_s"].items())
    device = results.conditions["device"]
    where = (
        f"{device}, {limits['threads']} thread{'s' * (limits['threads'] != 1)}"
        if limits["device"] == "cpu"
        else f"{device}"
    )
    return (
        f"Limits measured on {where}: copy {_scaled(limits['copy_bytes_per_s'], 'B/s')} read and written; "
        f"matrix products {rates}."
    )


def conditions_line(results: Results) -> str:
    """Conditions of the run in one sentence."""
    found = results.conditions
    packages: Any = found["packages"]
    versions = [f"{name} {packages[name]}" for name in ("torch", "triton", "numba", "numpy") if name in packages]
    gpu = [f"CUDA {found['cuda']}", f"driver {found['driver']}"] if "cuda" in found else []
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)} of {found['cores']} cores"
    commit = [f"commit {found['commit']}"] if found["commit"] else []
    parts = [str(found["device"]), *gpu, threads, f"Python {found['python']}", *versions, *commit, str(found["date"])]
    return ", ".join(parts) + (", --quick." if found["quick"] else ".")


def _scaled(number: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"
