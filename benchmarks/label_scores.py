"""Scores of the labels of `sohes explore` and, as a self-check, of the ground truth, by `sohes evaluate`.

    python benchmarks/label_scores.py --data DIR --labels LABELS --out benchmarks/results/label_scores.json

DIR holds one folder a data set with a COCO `annotations.json`, LABELS a label folder of the same name for each. The
ground truth against itself must reach 100 in AR@1000, in AR by size and, where parts are annotated, in the hierarchy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sohes_benchmarks.scripts import annotated_sets, options, print_rows, write_report

COLUMNS = (
    *("ar_1", "ar_10", "ar_100", "ar_1000", "ar_small", "ar_medium", "ar_large"),
    *("part_of_recall", "pairs_found", "link_recall", "link_precision"),
)


def scores(truth: Path, predictions: list[Path]) -> list[dict[str, Any]]:
    """The scores of each, in percent, and what they count."""
    command = [sys.executable, "-m", "sohes_cli", "evaluate", *map(str, predictions), "--gt", str(truth), "--json"]
    content = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = []
    for found in content["predictions"]:
        values = {**found["all_images"], **(found["hierarchy"] or {})}
        percent = {name: None if values.get(name) is None else round(100 * values[name], 2) for name in COLUMNS}
        forest = {name: found["forest"][name] for name in ("mean_depth", "branching")} if found["forest"] else {}
        counts = {
            "images": content["images"],
            "annotations": content["annotations"],
            "masks_per_image": round(found["masks_per_image"], 1),
        }
        rows.append(
            {"predictions": "labels" if Path(found["path"]).is_dir() else "ground truth", **counts, **percent, **forest}
        )
    return rows


def check(row: dict[str, Any]) -> None:
    """Stop if the ground truth does not find itself."""
    perfect = {name: row[name] for name in COLUMNS if name not in ("ar_1", "ar_10", "ar_100") and row[name] is not None}
    if any(value != 100 for value in perfect.values()):
        raise SystemExit(f"The ground truth of {row['set']} does not find itself: {perfect}")


def main() -> None:
    """Score all sets."""
    arguments = options(__doc__, "--data", "--labels", "--out").parse_args()
    rows = []
    for folder in annotated_sets(arguments.data):
        truth = folder / "annotations.json"
        rows += [{"set": folder.name, **row} for row in scores(truth, [arguments.labels / folder.name, truth])]
        check(rows[-1])
    write_report(arguments.out, rows)
    print_rows(rows, ("set", "predictions", *COLUMNS))


if __name__ == "__main__":
    main()
