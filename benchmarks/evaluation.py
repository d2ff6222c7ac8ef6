"""`sohes evaluate` against pycocotools: equality and time on real photographs, and time and memory at the size of a
large validation set.

    python benchmarks/evaluation.py --data DIR --labels LABELS --out benchmarks/results/evaluation.json [--large]

DIR holds one folder a data set, each with `images/` and a COCO `annotations.json`, LABELS a label folder of the same
name for each. For each set two result files are scored: the labels, and a pool of 1,000 Felzenszwalb regions an image.
Both read the same files and are timed from opening them to the last score, on the clock of the processor, one thread,
alternately, after a first run that compiles. `--large` repeats the pools to 5,000 images with 1,000 masks and runs the
command itself over all cores, with its largest memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from sohes_benchmarks.conditions import conditions
from sohes_benchmarks.stages.evaluate import sohes_scores
from sohes_benchmarks.stages.felzenszwalb import felzenszwalb_pool

from sohes_cli.evaluation.reference import pycocotools_scores

if TYPE_CHECKING:
    from collections.abc import Callable

Scores = dict[str, float | None]
RUNS = 3
POOL_IMAGES = 25
LARGE_IMAGES = 5000


def timed(program: Callable[[Path, Path], Scores], truth: Path, results: Path) -> tuple[Scores, float]:
    start = time.process_time()
    scores = program(truth, results)
    return scores, time.process_time() - start


def compare(truth: Path, results: Path) -> dict[str, Any]:
    """One row: how far apart the scores are and how long each program takes."""
    ours, theirs = sohes_scores(truth, results), pycocotools_scores(truth, results)
    if any((ours[k] is None) != (theirs[k] is None) for k in theirs):
        raise SystemExit(f"{results}: a score that one program has is missing in the other")
    difference = max(abs(value - (ours[k] or 0.0)) for k, value in theirs.items() if value is not None)
    seconds: dict[str, list[float]] = {"sohes": [], "pycocotools": []}
    for _ in range(RUNS):
        seconds["sohes"].append(timed(sohes_scores, truth, results)[1])
        seconds["pycocotools"].append(timed(pycocotools_scores, truth, results)[1])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    content = json.loads(truth.read_text())
    return {
        "images": len(content["images"]),
        "annotations": len(content["annotations"]),
        "masks_per_image": round(len(json.loads(results.read_text())) / len(content["images"]), 1),
        "largest_difference": difference,
        "sohes_ms_per_image": round(1000 * medians["sohes"] / len(content["images"]), 2),
        "pycocotools_ms_per_image": round(1000 * medians["pycocotools"] / len(content["images"]), 2),
        "times_as_fast": round(medians["pycocotools"] / medians["sohes"], 1),
    }


def label_results(folder: Path, labels: Path, out: Path) -> None:
    """The labels of a data set as a COCO result file."""
    from sohes_cli.labels.store import LabelStore

    ids = {image["file_name"]: image["id"] for image in json.loads((folder / "annotations.json").read_text())["images"]}
    results = [
        {"image_id": ids[record.file_name], "category_id": 1, "segmentation": a.segmentation, "score": a.score}
        for record in LabelStore(labels)
        for a in record.annotations
    ]
    out.write_text(json.dumps(results))


def pool_case(folder: Path, work: Path) -> tuple[Path, Path]:
    """The first images of a data set with 1,000 Felzenszwalb regions each: annotations and results."""
    truth = json.loads((folder / "annotations.json").read_text())
    truth["images"] = truth["images"][:POOL_IMAGES]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    results = [
        {"image_id": image["id"], "category_id": 1, **mask}
        for image in truth["images"]
        for mask in felzenszwalb_pool(folder / "images" / image["file_name"])
    ]
    paths = work / f"{folder.name}-truth.json", work / f"{folder.name}-pool.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def large_case(cases: list[tuple[Path, Path]], work: Path) -> tuple[Path, Path]:
    """Repeat the pools under new ids up to 5,000 images with exactly 1,000 masks each (the best ones again)."""
    images, annotations, per_image = [], [], []
    for truth_path, pool_path in cases:
        truth, pool = json.loads(truth_path.read_text()), json.loads(pool_path.read_text())
        for image in truth["images"]:
            images.append(image)
            annotations.append([a for a in truth["annotations"] if a["image_id"] == image["id"]])
            masks = [m for m in pool if m["image_id"] == image["id"]]
            per_image.append((masks * (1000 // len(masks) + 1))[:1000])
    paths = work / "large-truth.json", work / "large-results.json"
    copies: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    with paths[1].open("w") as file:
        for i in range(LARGE_IMAGES):
            source = i % len(images)
            copies["images"].append({**images[source], "id": i + 1, "file_name": f"{i}.jpg"})
            first = len(copies["annotations"]) + 1
            copies["annotations"] += [
                {**a, "id": first + k, "image_id": i + 1, "parent": None} for k, a in enumerate(annotations[source])
            ]
            lines = (json.dumps({**mask, "image_id": i + 1}) for mask in per_image[source])
            file.write(("[" if i == 0 else ",\n") + ",\n".join(lines))
        file.write("]\n")
    paths[0].write_text(json.dumps(copies))
    return paths


def large_row(truth: Path, results: Path) -> dict[str, Any]:
    """Run the command on all cores; seconds and peak memory of its processes, without pages of mapped files."""
    command = [sys.executable, "-m", "sohes_cli", "evaluate", str(results), "--gt", str(truth), "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    largest: dict[int, int] = {}
    while process.poll() is None:
        for pid, megabytes in memory_mb(process.pid).items():
            largest[pid] = max(megabytes, largest.get(pid, 0))
        time.sleep(0.2)
    seconds = time.perf_counter() - start
    content = json.loads(process.communicate()[0])
    return {
        "images": content["images"],
        "annotations": content["annotations"],
        "masks": content["predictions"][0]["masks"],
        "result_file_mb": round(results.stat().st_size / 1e6),
        "processes": len(os.sched_getaffinity(0)),
        "wall_seconds": round(seconds, 1),
        "main_process_mb": largest.pop(process.pid),
        "largest_worker_mb": max(largest.values()),
    }


def memory_mb(pid: int) -> dict[int, int]:
    """Memory of a process and of its children that is theirs alone (RssAnon of Linux), in MB."""
    found = {}
    with contextlib.suppress(OSError, StopIteration):  # it has just ended
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        found[pid] = round(int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1000)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= memory_mb(int(child))
    return found


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "conditions": {**conditions(), "threads": 1, "clock": "processor time", "runs": RUNS},
        "rows": rows,
    }
    with tempfile.TemporaryDirectory() as name:
        work, pools = Path(name), []
        for folder in sorted(p.parent for p in arguments.data.glob("*/annotations.json")):
            label_results(folder, arguments.labels / folder.name, work / "labels.json")
            rows.append(
                {
                    "set": folder.name,
                    "masks": "sohes explore",
                    **compare(folder / "annotations.json", work / "labels.json"),
                }
            )
            pools.append(pool_case(folder, work))
            rows.append({"set": folder.name, "masks": "Felzenszwalb pool", **compare(*pools[-1])})
        if arguments.large:
            report["large"] = large_row(*large_case(pools, work))
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print_table(rows)
    print(report.get("large", ""))


def print_table(rows: list[dict[str, Any]]) -> None:
    """All rows as a table."""
    table = Table(title="sohes evaluate against pycocotools, one thread")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("set", "masks") else "right")
    for row in rows:
        table.add_row(
            *(f"{value:.1e}" if column == "largest_difference" else str(value) for column, value in row.items())
        )
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
