"""Curves of a pretraining run: its loss and diagnostics, and the recall of `sohes explore` with each of its
checkpoints, against time.

    python benchmarks/pretraining_curve.py runs/pretrain --data DIR --out benchmarks/results/pretraining_curve.json

DIR is that of `label_quality.py`; recall is that of labels by the backbone's features alone
(`merging.affinities=features`), so that nothing else helps, on the half of the photographs on which settings were
chosen. Run with `--set run.keep=1000` to have all checkpoints.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from label_quality import one_thread, score
from sohes_benchmarks.conditions import conditions

from sohes_cli.pretrain.training import CHECKPOINT_FORMAT
from sohes_cli.training.metrics import read_metrics
from sohes_cli.vit.pretrained import BACKBONE_NAME, load_vit
from sohes_cli.vit.tensor_file import read_tensors, write_tensors

SCORES = ("ar_10", "ar_100", "ar_1000", "ar_large")


def write_backbone(checkpoint: Path, description: dict[str, Any], path: Path) -> int:
    """Write the teacher of a checkpoint as a backbone; the steps it was trained for."""
    tensors, state = read_tensors(checkpoint, CHECKPOINT_FORMAT)
    teacher = {name.removeprefix("teacher.vit."): t for name, t in tensors.items() if name.startswith("teacher.vit.")}
    write_tensors(path, teacher, description)
    return int(state["step"])


def recall(pool: ProcessPoolExecutor, data: Path, settings: list[str], limit: int) -> dict[str, float]:
    """Mean over the sets of the scores of one backbone."""
    folders = sorted(p.parent for p in data.glob("*/annotations.json"))
    rows = [score(pool, folder, settings, limit, "tune") for folder in folders]
    return {name: round(float(np.mean([row[name] for row in rows])), 2) for name in SCORES}


def draw(points: list[dict[str, Any]], metrics: list[dict[str, Any]], path: Path) -> None:
    """Recall, loss and diagnostics against steps, one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name in SCORES[1:]:
        axes[0].plot(
            [p["step"] for p in points], [p[name] for p in points], marker="o", label=name.replace("_", " ").upper()
        )
    axes[0].set_title("mask recall by the features alone, percent")
    for axis, names in ((axes[1], ("loss_match", "loss_image", "loss_masked")), (axes[2], ("feature_rank",))):
        for name in names:
            lines = [line for line in metrics if line.get(name) is not None]
            if lines:
                axis.plot(
                    [line["step"] for line in lines], [line[name] for line in lines], label=name.replace("_", " ")
                )
    axes[1].set_title("loss")
    axes[2].set_title("effective rank of the features")
    for axis in axes:
        axis.set_xlabel("optimizer steps")
        axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Score the checkpoints and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of sohes pretrain")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--every", type=int, default=4, help="score every so many checkpoints")
    parser.add_argument("--limit", type=int, default=8, help="images of each half")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    _, description = load_vit(arguments.run / BACKBONE_NAME)
    metrics = read_metrics(arguments.run)
    checkpoints = sorted((arguments.run / "checkpoints").glob("step-*.safetensors"))
    chosen = [
        *checkpoints[:: arguments.every],
        *([checkpoints[-1]] if (len(checkpoints) - 1) % arguments.every else []),
    ]
    points = []
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(2, initializer=one_thread) as pool:
        for checkpoint in chosen:
            path = Path(scratch) / f"{checkpoint.stem}.safetensors"
            step = write_backbone(checkpoint, description, path)
            settings = [f"features.backbone='{path}'", "merging.affinities=features"]
            seconds = next((line["seconds"] for line in metrics if line["step"] >= step and "seconds" in line), None)
            points.append({"step": step, "seconds": seconds, **recall(pool, arguments.data, settings, arguments.limit)})
            print(points[-1], flush=True)
            report = {"conditions": conditions(), "limit": arguments.limit, "points": points, "metrics": metrics}
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(points, metrics, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
