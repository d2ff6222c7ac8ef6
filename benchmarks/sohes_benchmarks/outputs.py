"""The files that a benchmark run writes: refused before the first measurement if they cannot be, and written whole or
not at all.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import UsageError
from sohes_cli.runs.files import check_output_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sohes_benchmarks.rows import Results

__all__ = ["RESULTS_SUFFIXES", "as_text", "check_output", "write_results"]

RESULTS_SUFFIXES = (".json",)


def check_output(flag: str, path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file that could not be written after minutes of measurement.

    Args:
        flag: the option that names the file, for messages.
        path: the file.
        suffixes: those allowed, lower case.

    Raises:
        UsageError: if the suffix is another, the path is a folder, or its folder is missing or takes no files.
    """
    check_output_name(flag, path, suffixes, f"bench{suffixes[0]}")
    folder = path.absolute().parent
    if not os.path.isdir(folder):  # noqa: PTH112 (a Path's method raises where the name is too long)
        raise UsageError(f"{flag} {path}: there is no folder {folder}.", "Make it first, or name another one.")
    if not os.access(folder, os.W_OK) or (os.path.lexists(path) and not os.access(path, os.W_OK)):
        raise UsageError(f"{flag} {path}: nothing can be written there.", "Choose a folder that you may write to.")


def write_results(path: Path, results: Results) -> None:
    """Write the results as JSON, a row a line.

    Raises:
        StoreError: if the file cannot be written.
    """
    from sohes_cli.runs.files import write_atomically

    write_atomically(path, [as_text(results).encode()])


def as_text(results: Results) -> str:
    """The results as JSON: what they were measured under, and a row a line."""
    content: dict[str, Any] = results.to_json()
    rows = content.pop("rows")
    head = json.dumps(content, indent=1).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return f'{head},\n "rows": [\n{lines}\n ]\n}}\n' if rows else f'{head},\n "rows": []\n}}\n'
