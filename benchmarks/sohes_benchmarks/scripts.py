"""Shared parts of the scripts: options, `sohes` commands, resumable reports and tables."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sohes_benchmarks.conditions import conditions
from sohes_cli.runs.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["annotated_sets", "finished_rows", "half_of", "options", "print_means", "print_rows", "run", "write_report"]


def options(doc: str | None, *paths: str, half: str = "") -> argparse.ArgumentParser:
    """Make a parser.

    Args:
        doc: module docstring of the script.
        paths: required options that name a file or folder.
        half: default of `--half`; empty for a script without `--half` and `--limit`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for path in paths:
        parser.add_argument(path, type=Path, required=True)
    if half:
        parser.add_argument("--half", default=half, choices=("tune", "report", "all"), help="photographs of each set")
        parser.add_argument("--limit", type=int, default=0, help="photographs of each set, 0 for all")
    return parser


def run(*arguments: object) -> None:
    """Run a `sohes` command; shows its progress and errors, not its summary."""
    command = [sys.executable, "-m", "sohes_cli", *map(str, arguments)]
    if code := subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"sohes {arguments[0]} ended with {code}, see above; finished work is kept.")


def annotated_sets(data: Path) -> list[Path]:
    """Folders with an `annotations.json` below the folder of all sets."""
    folders = sorted(path.parent for path in data.glob("*/annotations.json"))
    if not folders:
        raise SystemExit(f"--data {data} has no folder with an annotations.json.")
    return folders


def half_of(images: list[dict[str, Any]], half: str) -> list[dict[str, Any]]:
    """Every second image by file name, for choosing settings (`tune`) or for scores (`report`); or `all`."""
    if half == "all":
        return images
    return sorted(images, key=lambda image: str(image["file_name"]))[("tune", "report").index(half) :: 2]


def finished_rows(out: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier call with the same settings; refuses a report with others."""
    if not out.exists():
        return []
    report = json.loads(out.read_text())
    there = report["settings"] if isinstance(report.get("settings"), dict) else report
    if any(there.get(name) != value for name, value in settings.items()):
        shown = {name: there.get(name) for name in settings}
        raise SystemExit(f"{out} was made with other settings ({shown}): delete it, or name another file with --out")
    return list(report["rows"])


def write_report(out: Path, rows: Sequence[Mapping[str, Any]], **entries: Any) -> None:
    """Write conditions, entries and rows as one JSON file."""
    report = {"conditions": conditions(), **entries, "rows": rows}
    write_atomically(out, [json.dumps(report, indent=1).encode(), b"\n"])


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str | None = None) -> None:
    """Print a table; a column is left-aligned if it holds text, and None is shown as a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if any(isinstance(row[column], str) for row in rows) else "right")
    for row in rows:
        table.add_row(*("-" if row[column] is None else str(row[column]) for column in columns))
    Console(width=200).print(table)


def print_means(title: str, rows: Sequence[Mapping[str, Any]], key: str, columns: Sequence[str]) -> None:
    """Print for each value of `key` the mean of each column over the rows that have a number there."""
    means = []
    for name in dict.fromkeys(row[key] for row in rows):
        known = {c: [row[c] for row in rows if row[key] == name and row[c] is not None] for c in columns}
        means.append({key: name, **{c: f"{fmean(values):.1f}" if values else None for c, values in known.items()}})
    print_rows(means, (key, *columns), title)
