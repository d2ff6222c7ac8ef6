"""What models find in annotated photographs beside phase 1, from whose labels they learned, and what needs no learning, in one run.

    python benchmarks/model_scores.py --data DIR --models "phase 2=runs/instruct" "phase 3=runs/correct" \
        --work work/scores --out benchmarks/results/model_scores.json

DIR holds one folder a data set with `images/` and a COCO `annotations.json`. The first row is `sohes explore` with its default settings,
whose best masks the models learned from; the second a pool of Felzenszwalb segmentations, which have no hierarchy. All rows are scored by
`sohes evaluate`. `--half tune` or `report` takes every second photograph: for choices, and for the numbers that are then told. The models
of `--models` segment as `sohes segment` does by default, or with the options that follow the path (`"large=runs/correct --size 384"`).
Finished rows are kept.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from ablation import chosen_truth, run
from label_scores import scores
from rich.console import Console
from rich.table import Table
from sohes_benchmarks.conditions import conditions
from sohes_benchmarks.stages.felzenszwalb import felzenszwalb_pool

from sohes_cli.explore.weights import file_sha256
from sohes_cli.labels.store import write_atomically
from sohes_cli.model.location import find_model

LABELS, PEER = "color-texture (sohes explore)", "Felzenszwalb, eight scales"
COLUMNS = (
    *("ar_10", "ar_100", "ar_1000", "ar_small", "ar_medium", "ar_large"),
    *("part_of_recall", "pairs_found", "link_recall", "link_precision", "masks_per_image"),
)


def found_by(name: str, command: str, truth: Path, images: list[Path], work: Path) -> Path:
    """What a row's method finds in photographs: a label folder or a COCO result file."""
    out = work / re.sub(r"[^a-z0-9]+", "-", name.lower()) / truth.stem
    if name == PEER:
        return pooled(truth, images, out.with_suffix(".json"))
    how = ["--method", "explore"] if name == LABELS else ["--checkpoint", *shlex.split(command)]
    run("segment", *images, *how, "--out", out, "--no-pictures")
    return out


def pooled(truth: Path, images: list[Path], out: Path) -> Path:
    """A COCO result file of the peer's masks."""
    ids = {image["file_name"]: image["id"] for image in json.loads(truth.read_text())["images"]}
    with ProcessPoolExecutor() as processes:
        pools = list(processes.map(felzenszwalb_pool, images))
    masks = [{"image_id": ids[path.name], "category_id": 1, **mask} for path, pool in zip(images, pools, strict=True) for mask in pool]
    write_atomically(out, [json.dumps(masks).encode()])
    return out


def row_of(name: str, command: str, folder: Path, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One row: the scores of a method on one set."""
    truth, images = chosen_truth(folder, arguments.half, arguments.limit, work)
    found = scores(truth, [found_by(name, command, truth, images, work)])[0]
    model = {} if name in (LABELS, PEER) else {"model_sha256": file_sha256(find_model(Path(shlex.split(command)[0]))), "command": command}
    return {"method": name, "set": folder.name, "images": found["images"], **{key: found[key] for key in COLUMNS}, **model}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Each method's mean over sets; of hierarchies, over the sets that have parts."""
    table = Table(title=f"mean over {len({row['set'] for row in rows})} sets, percent")
    table.add_column("method")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name in dict.fromkeys(row["method"] for row in rows):
        known = ([row[column] for row in rows if row["method"] == name and row[column] is not None] for column in COLUMNS)
        table.add_row(name, *(f"{fmean(values):.1f}" if values else "-" for values in known))
    Console(width=200).print(table)


def parsed() -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=PATH", help="runs or model files, with options of sohes segment")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--half", default="all", choices=("tune", "report", "all"), help="which photographs of a set")
    parser.add_argument("--limit", type=int, default=0, help="photographs of a set, 0 for all")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def finished_rows(arguments: argparse.Namespace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier call with the same settings."""
    if not arguments.out.exists():
        return []
    report = json.loads(arguments.out.read_text())
    if report["settings"] != settings:
        raise SystemExit(f"{arguments.out} was made with other settings ({report['settings']}): delete it, or name another file with --out")
    return list(report["rows"])


def main() -> None:
    """Score every method on every set and write the table."""
    arguments = parsed()
    folders = sorted(path.parent for path in arguments.data.glob("*/annotations.json"))
    if not folders:
        raise SystemExit(f"--data {arguments.data} has no folder with an annotations.json.")
    settings = {"half": arguments.half, "limit": arguments.limit}
    rows = finished_rows(arguments, settings)
    models = dict(item.split("=", 1) for item in arguments.models)
    for name, command in {LABELS: "", PEER: "", **models}.items():
        for folder in folders:
            if (name, folder.name) not in {(row["method"], row["set"]) for row in rows}:
                rows.append({**row_of(name, command, folder, arguments, arguments.work), "commit": conditions()["commit"]})
                report = {"conditions": conditions(), "settings": settings, "rows": rows}
                write_atomically(arguments.out, [json.dumps(report, indent=1).encode(), b"\n"])
    print_table(rows)


if __name__ == "__main__":
    main()
