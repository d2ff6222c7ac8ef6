"""Curves of the runs of a model, one after the other: what is learned of photographs that no run has seen, and what the
teacher accepts.

    python benchmarks/training_curve.py runs/instruct runs/correct --out benchmarks/results/training_curve.json

Steps are counted on from run to run. Loss and ancestors are those of the photographs left out of training, with their
labels of phase 1; in phase 3 the teacher is measured. The report keeps all lines of the runs' `metrics.jsonl` and their
settings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sohes_benchmarks.conditions import conditions

from sohes_cli.training.metrics import read_metrics

PANELS = {
    "loss of photographs left out": ("loss_validation",),
    "its parts": ("loss_mask_validation", "loss_dice_validation", "loss_class_validation", "loss_ancestor_validation"),
    "ancestors of photographs left out": ("ancestor_recall_validation", "ancestor_balanced_accuracy_validation"),
    "labels of the teacher, a photograph": ("teacher_labels_small", "teacher_labels_medium", "teacher_labels_large"),
}


def joined(runs: list[Path]) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of all runs, with the steps of the runs before added, and the steps at which the next one begins."""
    lines, ends = list[dict[str, Any]](), [0]
    for run in runs:
        lines += [{**line, "step": line["step"] + ends[-1]} for line in read_metrics(run)]
        ends.append(lines[-1]["step"])
    return lines, ends[1:-1]


def draw(lines: list[dict[str, Any]], ends: list[int], path: Path) -> None:
    """A panel for each group of numbers that any run has, and a line where a run ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = {
        title: [name for name in names if any(line.get(name) is not None for line in lines)]
        for title, names in PANELS.items()
    }
    known = {title: names for title, names in known.items() if names}
    figure, axes = pyplot.subplots(1, len(known), figsize=(4.3 * len(known), 3.6), layout="constrained", squeeze=False)
    for axis, (title, names) in zip(axes[0], known.items(), strict=True):
        for name in names:
            told = [line for line in lines if line.get(name) is not None]
            short = name.removesuffix("_validation").removeprefix("teacher_labels_").replace("_", " ")
            axis.plot([line["step"] for line in told], [line[name] for line in told], marker=".", label=short)
        for end in ends:
            axis.axvline(end, color="gray", linewidth=0.8, linestyle=":")
        axis.set_title(title)
        axis.set_xlabel("optimizer steps")
        axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write the report and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of runs of sohes train, in the order in which they went on"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lines, ends = joined(arguments.runs)
    configs = {run.name: json.loads((run / "run.json").read_text())["config"] for run in arguments.runs}
    report = {"conditions": conditions(), "settings": configs, "ends": ends, "metrics": lines}
    arguments.out.write_text(json.dumps(report) + "\n")
    draw(lines, ends, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
