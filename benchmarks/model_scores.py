"""Scores of models beside phase 1, whose labels they learned, and a method without learning, in one run.

    python benchmarks/model_scores.py --data DIR --models "phase 2=runs/instruct" "phase 3=runs/correct" \
        --work work/scores --out benchmarks/results/model_scores.json

DIR holds one folder a data set with `images/` and a COCO `annotations.json`. The first row is `sohes explore` with its
default settings, whose best masks the models learned from; the second a pool of Felzenszwalb segmentations, which have
no hierarchy. All rows are scored by `sohes evaluate`. `--half tune` or `report` takes every second photograph: for
choices, and for the numbers that are then told. The models of `--models` segment as `sohes segment` does by default, or
with the options that follow the path (`"large=runs/correct --size 384"`). Rows that an earlier call has finished are
kept, if they are of the same model, options and annotations.
"""

from __future__ import annotations

import json
import re
import shlex
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation import chosen_truth
from label_scores import scores
from sohes_benchmarks.conditions import conditions
from sohes_benchmarks.scripts import annotated_sets, finished_rows, options, print_means, run, write_report
from sohes_benchmarks.stages.felzenszwalb import felzenszwalb_pool

from sohes_cli.model.location import find_model
from sohes_cli.runs.files import file_sha256, write_atomically

if TYPE_CHECKING:
    import argparse

LABELS, PEER = "color-texture (sohes explore)", "Felzenszwalb, eight scales"
COLUMNS = (
    *("ar_10", "ar_100", "ar_1000", "ar_small", "ar_medium", "ar_large"),
    *("part_of_recall", "pairs_found", "link_recall", "link_precision", "masks_per_image"),
)


def found_by(name: str, model: Path, options: list[str], truth: Path, images: list[Path], work: Path) -> Path:
    """Apply the method of a row; returns a label folder or a COCO result file."""
    out = work / re.sub(r"[^a-z0-9]+", "-", name.lower()) / truth.stem
    if name == PEER:
        return pooled(truth, images, out.with_suffix(".json"))
    how = ["--method", "explore"] if name == LABELS else ["--checkpoint", model, *options]
    run("segment", *images, *how, "--out", out, "--no-pictures", "--overwrite")
    return out


def pooled(truth: Path, images: list[Path], out: Path) -> Path:
    """A COCO result file of the peer's masks."""
    ids = [image["id"] for image in json.loads(truth.read_text())["images"]]  # in the order of `images`
    with ProcessPoolExecutor() as processes:
        pools = list(processes.map(felzenszwalb_pool, images))
    masks = [{"image_id": i, "category_id": 1, **mask} for i, pool in zip(ids, pools, strict=True) for mask in pool]
    write_atomically(out, [json.dumps(masks).encode()])
    return out


def row_of(name: str, command: str, folder: Path) -> dict[str, Any]:
    """Identity of a row: method, model and set."""
    described = {"method": name, "set": folder.name, "annotations_sha256": file_sha256(folder / "annotations.json")}
    if name in (LABELS, PEER):
        return described
    path, *options = shlex.split(command)
    return {**described, "model_sha256": file_sha256(find_model(Path(path))), "options": options}


def scored(row: dict[str, Any], command: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row with its scores."""
    truth, images = chosen_truth(folder, arguments.half, arguments.limit, arguments.work)
    path, *options = shlex.split(command) or [""]
    found = scores(truth, [found_by(row["method"], Path(path), options, truth, images, arguments.work)])[0]
    return {**row, "images": found["images"], **{key: found[key] for key in COLUMNS}, "commit": conditions()["commit"]}


def main() -> None:
    """Score every method on every set."""
    parser = options(__doc__, "--data", "--work", "--out", half="all")
    help_ = "runs or model files, with options of sohes segment"
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=PATH", help=help_)
    arguments = parser.parse_args()
    folders = annotated_sets(arguments.data)
    settings = {"half": arguments.half, "limit": arguments.limit}
    before, rows = finished_rows(arguments.out, settings), []
    methods = {LABELS: "", PEER: "", **dict(item.split("=", 1) for item in arguments.models)}
    for (name, command), folder in product(methods.items(), folders):
        row = row_of(name, command, folder)
        done = next((other for other in before if all(other.get(key) == value for key, value in row.items())), None)
        rows.append(done or scored(row, command, folder, arguments))
        write_report(arguments.out, rows, settings=settings)
    title = f"mean over {len(folders)} sets (of hierarchies, over those that have parts), percent"
    print_means(title, rows, "method", COLUMNS)


if __name__ == "__main__":
    main()
