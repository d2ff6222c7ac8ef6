"""Ablation of phase 3: one short run per variant, from the same model, scored on annotated photographs.

    python benchmarks/ablation.py --init runs/instruct --data DIR --work work/ablation --steps 300 --out
    benchmarks/results/ablation.json

DIR holds one folder a data set with `images/` and a COCO `annotations.json`; their photographs are segmented by each
variant's model and scored by `sohes evaluate`, each a command of its own. Two rows are the standard: `phase 2`, the
model that all start from, and `phase 2, as many steps more`, which has the optimizer steps of phase 3 and none of its
parts. The run can be stopped: runs, labels and finished rows are continued. Differences of a few tenths are noise;
`--seeds 0 1 2` shows how much.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from label_scores import scores
from sohes_benchmarks.conditions import conditions
from sohes_benchmarks.scripts import annotated_sets, finished_rows, half_of, options, print_means, run, write_report

from sohes_cli.model.location import find_model
from sohes_cli.runs.files import file_sha256
from sohes_cli.training.metrics import read_metrics

if TYPE_CHECKING:
    import argparse

START, LONGER = "phase 2", "phase 2, as many steps more"
VARIANTS: dict[str, tuple[str, ...] | None] = {
    START: None,
    LONGER: None,
    "phase 3": (),
    "no teacher's branch": ("branches.initial=[1,1]", "branches.teacher=[0,0]"),
    "teacher's branch alone": ("branches.initial=[0,0]",),
    "constant weights": ("branches.initial=[1,1]", "branches.teacher=[2,2]"),
    "fixed threshold": ("teacher.threshold=fixed",),
    "low thresholds": ("teacher.score_small=0.2", "teacher.score_large=0.4"),
    "high thresholds": ("teacher.score_small=0.6", "teacher.score_large=0.9"),
    "no moving average": ("teacher.ema_decay=0",),
    "weak view: the student's crop": ("views.weak=crop",),
    "no strong view": ("views.jitter=0", "views.grayscale=0", "views.blur=0", "views.erase=0"),
    "nothing erased": ("views.erase=0",),
    "hierarchy of the ancestor head": ("teacher.hierarchy=head",),
    "initial labels kept": ("teacher.keep_initial=true",),
}
COLUMNS = (
    *("ar_10", "ar_100", "ar_1000", "ar_small", "ar_medium", "ar_large"),
    *("part_of_recall", "link_precision", "masks_per_image"),
)
_LOGGED = ("teacher_labels", "teacher_new", "initial_rejected", "ema_distance")
_OF_PHASE_3 = ("teacher.", "branches.", "views.")


def trained(name: str, seed: int, arguments: argparse.Namespace, out: Path) -> Path:
    """The model of a variant: that of its run in `out`, which is taken or continued."""
    assignments = VARIANTS[name]
    if name == START:
        return Path(arguments.init)
    phase = "instruct" if assignments is None else "correct"
    common = [setting for setting in arguments.settings if phase == "correct" or not setting.startswith(_OF_PHASE_3)]
    settings = [part for setting in (*common, *(assignments or ()), f"run.seed={seed}") for part in ("--set", setting)]
    if phase == "instruct":
        settings = ["--config", str(_settings_file(arguments.init, out)), *settings]
    start = ("--phase", phase, "--init", arguments.init, *_labels(arguments))
    run("train", *start, *settings, "--steps", arguments.steps, "--out", out)
    return out


def _settings_file(init: Path, out: Path) -> Path:
    """The settings of the run of phase 2 as a TOML file beside the run that goes on from it."""
    config = json.loads((init / "run.json").read_text())["config"]
    path = out.with_suffix(".toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for group, values in config.items()
    )
    path.write_text("\n".join(groups))
    return path


def _labels(arguments: argparse.Namespace) -> list[object]:
    """The labels of the run of phase 2, as options."""
    there = json.loads((arguments.init / "run.json").read_text())
    return ["--labels", arguments.init / there["label_path"], "--images", arguments.init / there["image_path"]]


def chosen_truth(folder: Path, half: str, limit: int, work: Path) -> tuple[Path, list[Path]]:
    """The annotations of some photographs of a set, written into `work`, and the photographs."""
    content = json.loads((folder / "annotations.json").read_text())
    images = half_of(content["images"], half)[: limit or None]
    ids = {image["id"] for image in images}
    path = work / "truth" / f"{folder.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    path.write_text(json.dumps({**content, "images": images, "annotations": kept}))
    return path, [folder / "images" / image["file_name"] for image in images]


def scored(
    name: str, seed: int, folder: Path, model: Path, arguments: argparse.Namespace, work: Path
) -> dict[str, Any]:
    """One row: the scores of a variant's model on one set."""
    truth, images = chosen_truth(folder, arguments.half, arguments.limit, work)
    segmented = work / _slug(name, seed) / folder.name
    run("segment", *images, "--checkpoint", model, "--out", segmented, "--no-pictures")
    lines = [] if name == START else read_metrics(model)
    logged = {key: round(lines[-1][key], 4) for key in _LOGGED if lines and lines[-1].get(key) is not None}
    found = scores(truth, [segmented])[0]
    shown = {key: found[key] for key in ("images", *COLUMNS)}
    return {"variant": name, "seed": seed, "set": folder.name, **shown, **logged}


def _slug(name: str, seed: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()) + f"-{seed}"


def parsed() -> argparse.Namespace:
    """Parse the options of a run."""
    parser = options(__doc__, "--init", "--data", "--work", "--out", half="report")
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="settings of `sohes train` for all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser.parse_args()


def described(arguments: argparse.Namespace, folders: list[Path]) -> dict[str, Any]:
    """Settings and inputs that all rows depend on."""
    files = {folder.name: file_sha256(folder / "annotations.json") for folder in folders}
    settings = {name: getattr(arguments, name) for name in ("steps", "settings", "half", "limit")}
    return {**settings, "model_sha256": file_sha256(find_model(arguments.init)), "annotations_sha256": files}


def main() -> None:
    """Take all runs, score all models and write the table."""
    arguments = parsed()
    folders = annotated_sets(arguments.data)
    settings = described(arguments, folders)
    rows = finished_rows(arguments.out, settings)
    work = arguments.work / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]  # other settings, other runs
    for seed, name in product(arguments.seeds, arguments.variants):
        if name == START and seed != arguments.seeds[0]:
            continue
        done = {row["set"] for row in rows if (row["variant"], row["seed"]) == (name, seed)}
        left = [folder for folder in folders if folder.name not in done]
        model = trained(name, seed, arguments, work / _slug(name, seed) / "run") if left else arguments.init
        for folder in left:
            rows.append({**scored(name, seed, folder, model, arguments, work), "commit": conditions()["commit"]})
            write_report(arguments.out, rows, settings=settings)
    title = f"mean over {len({row['set'] for row in rows})} sets and {len({row['seed'] for row in rows})} seeds"
    print_means(title, rows, "variant", COLUMNS)


if __name__ == "__main__":
    main()
