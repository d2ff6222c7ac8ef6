"""A check of the whole training loop: a few photographs with human masks are learned by heart, and their scores told.

    python benchmarks/overfit.py --data DIR --set everyday --out benchmarks/results/overfit_everyday.json

DIR holds one folder a data set with `images/` and a COCO `annotations.json`. The first photographs with three masks or
more, each of at least `--min-area` pixels, are learned without jitter by `sohes train`, segmented by `sohes segment`
and scored by `sohes evaluate`, each a command of its own. Nothing that is broken in crops, matching, losses, optimizer,
masks or forest would let such scores come out.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from label_scores import scores
from sohes_benchmarks.conditions import conditions
from sohes_benchmarks.scripts import options, run

from sohes_cli.training.metrics import read_metrics

if TYPE_CHECKING:
    import argparse

STILL = (
    "data.scale=[1.0,1.0]",
    "data.flip=0",
    "data.min_area_px=1",
    "data.validation=0",
    "optimizer.schedule=cosine",
    "run.log_every=10",
)
CURVE = ("step", "loss", "ancestor_accuracy", "ancestor_recall", "ancestor_balanced_accuracy")


def choose(folder: Path, count: int, min_area: int, out: Path) -> Path:
    """Copy the first photographs with three large masks or more, and write the annotations of these alone."""
    content = json.loads((folder / "annotations.json").read_text())
    areas: dict[int, list[float]] = defaultdict(list)
    for annotation in content["annotations"]:
        areas[annotation["image_id"]].append(annotation["area"])
    fitting = [
        image for image in content["images"] if len(areas[image["id"]]) >= 3 and min(areas[image["id"]]) >= min_area
    ][:count]
    chosen = {image["id"] for image in fitting}
    kept = [annotation for annotation in content["annotations"] if annotation["image_id"] in chosen]
    (out / "images").mkdir()
    for image in fitting:
        shutil.copy(folder / "images" / image["file_name"], out / "images" / image["file_name"])
    truth = out / "annotations.json"
    truth.write_text(json.dumps({**content, "images": fitting, "annotations": kept}))
    return truth


def learn(truth: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, segment and score; the numbers of all three."""
    images, trained, segmented = truth.parent / "images", work / "run", work / "segmented"
    settings = [part for assignment in STILL for part in ("--set", assignment)]
    size = ("--steps", arguments.steps, "--batch-size", arguments.images, "--image-size", arguments.image_size)
    sources = ("--labels", truth, "--images", images, "--preset", "tiny", "--learning-rate", arguments.learning_rate)
    run("train", *sources, *size, *settings, "--out", trained, "--workers", 0)
    run("segment", images, "--checkpoint", trained, "--out", segmented, "--min-score", 0.05)
    curve = [{name: line.get(name) for name in CURVE} for line in read_metrics(trained)]
    if arguments.picture:
        shutil.copy(sorted((trained / "pictures").iterdir())[-1], arguments.picture)
    return {"scores": scores(truth, [segmented])[0], "curve": curve}


def main() -> None:
    """Learn one set by heart and write what came of it."""
    parser = options(__doc__, "--data", "--out")
    parser.add_argument("--set", required=True, help="the folder of the data set below --data")
    parser.add_argument("--picture", type=Path, help="where to copy the last picture of the run")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--min-area", type=int, default=1024, help="of the smallest mask of a photograph, in pixels")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        truth = choose(arguments.data / arguments.set, arguments.images, arguments.min_area, Path(folder))
        found = learn(truth, Path(folder), arguments)
    chosen = {
        name: getattr(arguments, name) for name in ("set", "images", "min_area", "steps", "image_size", "learning_rate")
    }
    arguments.out.write_text(
        json.dumps({"conditions": conditions(), "settings": {**chosen, "still": STILL}, **found}, indent=1) + "\n"
    )
    print(json.dumps(found["scores"]))


if __name__ == "__main__":
    main()
