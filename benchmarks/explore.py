"""Seconds an image of `sohes explore` by step, on one core, beside the peer's time for the same photographs in the same run.

    python benchmarks/explore.py --out benchmarks/results/explore.json

Photographs: the samples (`sohes samples`), or a folder of your own with --images. Backbones: the embedded descriptor, and a ViT-S/16
with random weights, whose time is that of any weights. Two processes, as on two cores, would take half the time an image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from label_quality import one_thread
from rich.console import Console
from rich.table import Table
from sohes_benchmarks.conditions import conditions
from sohes_benchmarks.stages.explore import SETTINGS, StageClock, exploration
from sohes_benchmarks.stages.felzenszwalb import felzenszwalb_pool


def steps(settings: list[str], path: Path, working_size: int, runs: int) -> dict[str, float]:
    """Median seconds of each step for one photograph, first use left out."""
    clock = StageClock()
    explore = exploration(settings, [path], working_size, clock)
    for _ in range(runs + 1):
        explore()
    return {step: milliseconds / 1000 for step, milliseconds in clock.medians_ms().items()}


def seconds_of_peer(path: Path) -> float:
    """Seconds of the Felzenszwalb pool for one photograph, after one warm-up."""
    felzenszwalb_pool(path)
    start = time.perf_counter()
    felzenszwalb_pool(path)
    return time.perf_counter() - start


def main() -> None:
    """Measure every case on every photograph and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs; default: the samples")
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--working-size", type=int, default=480)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as scratch:
        paths = photographs(arguments.images, Path(scratch), arguments.limit)
        peer = statistics.mean(seconds_of_peer(path) for path in paths)
        rows: list[dict[str, Any]] = []
        for name, case in SETTINGS.items():
            measured = [steps(case, path, arguments.working_size, arguments.runs) for path in paths]
            mean = {step: round(statistics.mean(m[step] for m in measured), 4) for step in measured[0]}
            total = sum(mean.values())
            rows.append({"case": name, "seconds": round(total, 3), "ratio_to_felzenszwalb": round(total / peer, 3), "steps": mean})
    report = {"conditions": {**conditions(), "threads": 1, "working_size": arguments.working_size, "images": [p.name for p in paths]},
              "felzenszwalb_seconds": round(peer, 3), "rows": rows}  # fmt: skip
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)


def photographs(folder: Path | None, scratch: Path, limit: int) -> list[Path]:
    """The photographs to measure."""
    from sohes_cli.explore.images import list_images
    from sohes_cli.samples import write_samples

    if folder is None:
        write_samples(scratch)
        folder = scratch
    return [folder / name for name in list_images(folder).names[:limit]]


def print_table(report: dict[str, Any]) -> None:
    """Seconds by step, one column a case."""
    table = Table(title=f"seconds an image, one core; Felzenszwalb pool: {report['felzenszwalb_seconds']}")
    table.add_column("step")
    for row in report["rows"]:
        table.add_column(row["case"], justify="right")
    for step in dict.fromkeys(step for row in report["rows"] for step in row["steps"]):
        table.add_row(step, *(f"{row['steps'][step]:.3f}" if step in row["steps"] else "" for row in report["rows"]))
    table.add_row("all", *(f"{row['seconds']:.3f}" for row in report["rows"]))
    table.add_row("ratio to the peer", *(f"{row['ratio_to_felzenszwalb']:.2f}" for row in report["rows"]))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
