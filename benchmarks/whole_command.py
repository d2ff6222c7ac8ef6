"""Latency of `sohes segment PHOTO --tree`, start to end, in seconds and relative to importing PyTorch and timm.

    python benchmarks/whole_command.py --checkpoint runs/correct --out benchmarks/results/whole_command.json

The photograph is a sample of 640 x 480 pixels. Commands are timed in turns, the first time of each is not counted: it
compiles loops, whose code lies on the disk afterwards. `photograph` is one photograph in a process that has loaded
everything and seen one before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table
from sohes_benchmarks.conditions import conditions

LOADING = "import torch, timm"
_WIDTH, _HEIGHT = 640, 480
_WAYS: dict[str, tuple[str, dict[str, int | str]]] = {
    "phase 1": ("explore", {}),
    "model": ("model", {}),
    "model, 2 views": ("model", {"views": 2}),
    "model, 8 views, superpixels": ("model", {"views": 8, "refine": "superpixels"}),
}
_IN_PROCESS = """
import json, sys, time
from sohes_cli.inference.choice import choose_method
from sohes_cli.inference.inputs import as_photograph
method = choose_method(sys.argv[1], json.loads(sys.argv[2]))
times = []
for _ in range(1 + int(sys.argv[4])):
    start = time.perf_counter()
    method.label([as_photograph(sys.argv[3], method.working_size)])
    times.append(time.perf_counter() - start)
print(sorted(times[1:])[len(times[1:]) // 2])
"""


def sample(folder: Path) -> Path:
    """A photograph of 640 x 480 pixels."""
    subprocess.run(
        [sys.executable, "-m", "sohes_cli", "samples", str(folder / "photos")], check=True, capture_output=True
    )
    pixels = cv2.imread(str(folder / "photos/coffee.jpg"))
    path = folder / "photo.jpg"
    cv2.imwrite(str(path), cv2.resize(pixels, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA))
    return path


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a command from start to end."""
    start = perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return perf_counter() - start


def measured(checkpoint: Path, photo: Path, runs: int) -> list[dict[str, Any]]:
    """A row for loading alone, and one for each way to labels."""
    segment = [sys.executable, "-m", "sohes_cli", "segment", str(photo), "--tree", "--method"]
    flags = {
        name: {"checkpoint": str(checkpoint.resolve()), **own} if kind == "model" else {}
        for name, (kind, own) in _WAYS.items()
    }
    commands = {LOADING: [sys.executable, "-c", LOADING]}
    for name, (kind, _) in _WAYS.items():
        commands[name] = [
            *segment,
            kind,
            *(word for flag, value in flags[name].items() for word in (f"--{flag}", str(value))),
        ]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(1 + runs):
        for name, command in commands.items():
            times[name].append(seconds(command, photo.parent))
    rows = [{"command": name, "seconds": round(median(values[1:]), 2)} for name, values in times.items()]
    for row, (name, (kind, _)) in zip(rows[1:], _WAYS.items(), strict=True):
        code = [sys.executable, "-c", _IN_PROCESS, kind, json.dumps(flags[name]), str(photo), str(runs)]
        row["photograph"] = round(float(subprocess.run(code, check=True, capture_output=True, text=True).stdout), 3)
    return [{**row, "times_loading": round(row["seconds"] / rows[0]["seconds"], 2)} for row in rows]


def main() -> None:
    """Time the commands and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run of sohes train or its model file")
    parser.add_argument("--runs", type=int, default=5, help="of each command")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(arguments.checkpoint, sample(Path(folder)), arguments.runs)
    report = {"conditions": conditions(), "runs": arguments.runs, "pixels": [_HEIGHT, _WIDTH], "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    table = Table(title=f"{_WIDTH} x {_HEIGHT} px, median of {arguments.runs}")
    for column in ("command", "whole command [s]", "times loading", "one photograph [s]"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["command"], str(row["seconds"]), str(row["times_loading"]), str(row.get("photograph", "-")))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
