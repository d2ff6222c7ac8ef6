"""Write benchmarks/results/README.md, and the table of results of the main README, from the JSON files of the results.

    python benchmarks/results_tables.py            # write both
    python benchmarks/results_tables.py --check    # exit with 1 if a file differs from what would be written

The text is results/README.template.md: `{tables[NAME]}` is a table, `{source[FILE]}` the conditions of a measurement
and its file, any other field a number.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from sohes_cli.evaluation.published import PUBLISHED_AR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
README = RESULTS.parents[1] / "README.md"
COLUMNS = {  # key in the JSON files -> title, decimals
    "images": ("images", 0),
    "annotations": ("masks", 0),
    "steps": ("steps", 0),
    "ar_10": ("AR@10", 1),
    "ar_100": ("AR@100", 1),
    "ar_1000": ("AR@1000", 1),
    "ar_small": ("small", 1),
    "ar_medium": ("medium", 1),
    "ar_large": ("large", 1),
    "part_of_recall": ("part-of recall", 1),
    "pairs_found": ("pairs found", 1),
    "link_recall": ("link recall", 1),
    "link_precision": ("link precision", 1),
    "masks_per_image": ("masks an image", 0),
    "cpu_seconds_per_image": ("CPU s an image", 2),
    "teacher_labels": ("teacher's labels an image", 0),
    "initial_rejected": ("initial labels rejected", 2),
    "ancestor_accuracy": ("ancestor pairs right", 3),
    "ancestor_recall": ("of the true ones", 3),
    "ancestor_balanced_accuracy": ("balanced", 3),
    "seconds": ("seconds", 1),
    "times_loading": ("over the first row", 2),
    "photograph": ("one more photograph, s", 2),
    "times_as_fast": ("times as fast", 1),
}
SETS = {
    "cars": "cars and parts",
    "clothing": "clothing",
    "contours": "contours",
    "everyday": "everyday scenes",
    "objects-parts": "objects and parts",
}
VARIANTS = {  # of label_ablation.json
    "default": "default: superpixels, three hierarchies",
    "one hierarchy: boundaries": "boundaries alone",
    "one hierarchy: both": "boundaries x features alone",
    "superpixels, features only": "features alone (superpixels)",
    "patches, features only": "features alone (patches of 4 px, the paper's rule)",
    "default, score = area": "default, ranked by area (`pooling.area_exponent=4`)",
}
COLOR_TEXTURE, FELZENSZWALB = "color-texture (sohes explore)", "Felzenszwalb, eight scales"
_LONGER, _OWN_LABELS = "1,720 steps more", "320 steps more on labels of its own 8 views"
_OPTIONS = ("--refine superpixels", "--views 8", "--views 2 --refine superpixels", "--views 8 --refine superpixels")
MODELS = {  # of model_scores.json
    COLOR_TEXTURE: "`color-texture` (phase 1)",
    FELZENSZWALB: FELZENSZWALB,
    "phase 2": "A: phase 2",
    "phase 2, --size 256": "A, `--size 256`",
    "phase 2, --size 256 --refine superpixels": "A, `--size 256 --refine superpixels`",
    "phase 2, 120 steps more at 256 px": "B: A and 120 steps",
    "phase 3": "C: A and phase 3",
    "phase 3, --refine superpixels": "C, `--refine superpixels`",
    f"phase 2, {_LONGER} at 256 px": "D: B and 1,600 steps",
    **{f"{_LONGER}, {options}": f"D, `{options}`" for options in _OPTIONS},
    _OWN_LABELS: "E: D and 320 steps",
    **{f"{_OWN_LABELS}, {options}": f"E, `{options}`" for options in _OPTIONS[2:]},
}
LABEL_CHOICES = {"300 steps of 4, random labels": "a random 100", "300 steps of 4, best labels": "the best 100"}
MAIN = {  # of model_scores.json, for the main README
    FELZENSZWALB: "Felzenszwalb, eight scales (no learning, no hierarchy)",
    COLOR_TEXTURE: "`sohes explore`, default",
    "phase 2": "model, phase 2",
    "phase 3": "model, phase 3",
    f"phase 2, {_LONGER} at 256 px": "model, phase 2 trained longer",
    f"{_LONGER}, --views 8": "the same, `--views 8`",
}
BACKBONES = ("felzenszwalb", "color-texture", "random ViT", "pretrained ViT")
_AR = ("ar_10", "ar_100", "ar_1000")
_BLOCK = re.compile(r"(?<=<!-- results -->\n).*(?=<!-- /results -->)", re.DOTALL)


def read(name: str) -> Any:
    """The content of a JSON file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def number(value: float | None, digits: int = 1) -> str:
    """A rounded number with thousands separators, or "-" if there is none."""
    return "-" if value is None else f"{value + 1e-9:,.{digits}f}"  # ties of decimals round up, whatever the binary


def ratio(value: float) -> str:
    """A ratio with two significant digits below 10, as `sohes bench` prints it."""
    return number(value, 0) if value >= 10 else f"{value:.2g}"


def cells(row: Row, keys: Iterable[str]) -> list[str]:
    """The numbers of a row, each with the decimals of its column."""
    return [number(row.get(key), COLUMNS[key][1]) for key in keys]


def table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    names = list(header)
    return "\n".join(
        ["| " + " | ".join(names) + " |", "|---" * len(names) + "|", *map("| {} |".format, map(" | ".join, rows))]
    )


def scores(first: str, titles: Mapping[str, str], rows: Mapping[str, Row], keys: Sequence[str]) -> str:
    """A table with a row for each title and a column for each key."""
    header = [first, *(COLUMNS[key][0] for key in keys)]
    return table(header, ([title, *cells(rows[name], keys)] for name, title in titles.items()))


def means(rows: Sequence[Row], by: str) -> dict[str, Row]:
    """The mean of every number over the rows with the same value in column `by`, rows without the number left out."""
    found: dict[str, Row] = {}
    for name in dict.fromkeys(row[by] for row in rows):
        group = [row for row in rows if row[by] == name]
        values = {key: [row[key] for row in group if isinstance(row.get(key), int | float)] for key in group[0]}
        found[name] = {key: fmean(numbers) if numbers else None for key, numbers in values.items()}
    return found


def label_quality() -> str:
    """Phase 1 : its peer, set by set."""
    rows = {(row["variant"], row["set"]): row for row in read("label_quality")["rows"]}
    keys, lines = (*_AR, "ar_large", "masks_per_image"), []
    for name, title in SETS.items():
        ours, peer = rows["default", name], rows["felzenszwalb", name]
        pairs = [" : ".join(pair) for pair in zip(cells(ours, keys), cells(peer, keys), strict=True)]
        time = ours["cpu_seconds_per_image"] / peer["cpu_seconds_per_image"]
        lines.append([title, str(ours["images"]), *pairs, number(time, 2)])
    return table(["set", "images", *(COLUMNS[key][0] for key in keys), "CPU time, ours / peer"], lines)


def backbone_quality(rows: Sequence[Row]) -> str:
    """A pretrained ViT beside its control and its peers."""
    found = {(row["variant"], row["set"]): row for row in rows}
    found |= {(variant, "mean"): row for variant, row in means(rows, "variant").items()}
    titles = {name: f"{title} ({found['random ViT', name]['images']})" for name, title in SETS.items()}
    lines = (
        [title, *("/".join(cells(found[variant, name], (*_AR, "ar_large"))) for variant in BACKBONES)]
        for name, title in {**titles, "mean": "mean of the sets"}.items()
    )
    return table(["set (images)", *BACKBONES], lines)


def overfit() -> str:
    """A few photographs learned by heart."""
    names = ("everyday", "objects-parts")
    contents = {name: read(f"overfit_{name}") for name in names}
    rows = {name: {**c["scores"], **c["settings"], **c["curve"][-1]} for name, c in contents.items()}
    keys = ("images", "annotations", "steps", "ar_100", "ar_small", "ar_medium", "ar_large", "part_of_recall")
    pairs = ("link_precision", "ancestor_accuracy", "ancestor_recall", "ancestor_balanced_accuracy")
    return scores("set", {name: SETS[name] for name in names}, rows, (*keys, *pairs))


def ablation() -> str:
    """Phase 3 without single parts."""
    rows = means(read("ablation")["rows"], "variant")
    keys = ("ar_10", "ar_100", "ar_medium", "ar_large", "part_of_recall", "teacher_labels", "initial_rejected")
    return scores("variant", {name: name for name in rows}, rows, keys)


def peers() -> str:
    """A training step, a photograph and a step of phase 3 beside their peers."""
    lines = []
    for name, title in {"train": "training step", "segment": "photograph", "correct": "step of phase 3"}.items():
        peer, *rows = read(f"{name}_cpu")["rows"]
        for row in rows:
            memory = number(row["peak_memory_bytes"] / peer["peak_memory_bytes"], 2)
            lines.append([title, row["provider"], peer["provider"], ratio(row["ratio_to_reference"]), memory])
    return table(("operation", "provider", "peer", "times as fast", "peak memory, ours / peer"), lines)


def kernels(rows: Sequence[Row]) -> str:
    """Operations beside their plain references and other implementations."""
    lines: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row["status"] == "ok" and row["mode"] != "stage" and row["provider"] != "reference":
            found = lines.setdefault((row["op"], row["case"]), {})
            found.setdefault(row["provider"], []).append(ratio(row["ratio_to_reference"]))
    shown = (
        [op, case, " / ".join(found.pop("cpu", "-")), ", ".join(f"{n} {' / '.join(v)}" for n, v in found.items())]
        for (op, case), found in lines.items()
    )
    return table(("operation", "case", "`cpu`", "others"), shown)


def stages(rows: Sequence[Row]) -> str:
    """Photographs of phase 1 beside the peer's time."""
    lines = []
    chosen = [row for row in rows if row["op"] == "explore"]
    for peer, ours in zip(chosen[::2], chosen[1::2], strict=True):
        step, ms = max(ours["steps_ms"].items(), key=lambda item: item[1])  # of one photograph
        slowest = f"{step} {ratio(ms * ours['items'] / peer['median_ms'])}"
        lines.append([ours["case"], ratio(ours["median_ms"] / peer["median_ms"]), slowest])
    return table(("features and units", "time, ours / peer", "its slowest step"), lines)


def evaluation(rows: Sequence[Row]) -> str:
    """`sohes evaluate` beside pycocotools, labels : pool."""
    keys = ("images", "annotations", "masks_per_image", "times_as_fast")
    pairs = {name: [cells(row, keys) for row in rows if row["set"] == name] for name in SETS}
    lines = ([SETS[name], *(" : ".join(pair) for pair in zip(*pairs[name], strict=True))] for name in SETS)
    return table(["set", *(COLUMNS[key][0] for key in keys)], lines)


def main_block(found: Mapping[str, Row], photographs: int) -> str:
    """The block of the main README."""
    sam, paper = (PUBLISHED_AR["sa1b"][method] for method in ("SAM", "SOHES"))
    return (
        f"Class-agnostic mask AR in percent, mean of five private sets ({photographs} photographs, one seed):\n\n"
        f"{scores('', MAIN, found, (*_AR, 'ar_large', 'part_of_recall', 'masks_per_image'))}\n\n"
        "Phase 1 beats Felzenszwalb segmentation and is far from SAM (published AR@1000 on SA-1B, other photographs:\n"
        f"SAM {sam}, the paper's SOHES {paper}). The models are `tiny`, trained from random weights on two CPU cores:\n"
        "they find more of the large masks than their labels, and less of everything else.\n"
    )


def training_runs() -> dict[str, Row]:
    """Settings and minutes of the training runs behind the models, by name."""
    found = {}
    for name in ("training_curve", "training_curve_longer"):
        content = read(name)
        for index, (run, settings) in enumerate(content["settings"].items()):
            lines = [line for line in content["metrics"] if (line["step"] > content["ends"][0]) == bool(index)]
            minutes = max(line.get("seconds", 0) for line in lines) / 60
            found[run] = {**settings["data"], **settings["optimizer"], "minutes": number(minutes, 0)}
    return found


def source(path: Path) -> str:
    """The conditions of a measurement: processor, commits, file."""
    content = read(path.stem)
    commits = {row["commit"] for row in content.get("rows", []) if "commit" in row} or {content["conditions"]["commit"]}
    processor = content["conditions"]["processor"].replace("(R)", "")
    return f"{processor}, commit {', '.join(sorted(commits))}, [{path.stem}]({path.name})"


def documents() -> dict[Path, str]:
    """The text of each file that this script writes."""
    rows = {name: read(name)["rows"] for name in ("model_scores", "backbone_quality", "bench_cpu", "evaluation")}
    found, curve = means(rows["model_scores"], "method"), read("pretraining_curve")
    photographs = sum(row["images"] for row in rows["model_scores"] if row["method"] == COLOR_TEXTURE)
    labels = {row["set"]: row for row in read("label_scores")["rows"] if row["predictions"] == "labels"}
    refined = means(read("refinement")["rows"], "variant")
    commands = {row["command"]: row for row in read("whole_command")["rows"]}
    hierarchy = ("part_of_recall", "pairs_found", "link_recall", "link_precision")
    sizes = ("ar_small", "ar_medium", "ar_large", "part_of_recall", "link_precision", "masks_per_image")
    tables = {
        "label_quality": label_quality(),
        "label_scores": scores("set", SETS, labels, ("images", "annotations", *_AR, *hierarchy)),
        "label_ablation": scores(
            "variant", VARIANTS, means(read("label_ablation")["rows"], "variant"), (*_AR, "cpu_seconds_per_image")
        ),
        "backbone_quality": backbone_quality(rows["backbone_quality"]),
        "model_scores": scores("", MODELS, found, (*_AR, *sizes)),
        "label_choice": scores("labels of a crop", LABEL_CHOICES, found, (*_AR[:2], "ar_medium", "ar_large")),
        "refinement": scores("variant", {n: n for n in refined}, refined, _AR),
        "ablation": ablation(),
        "overfit": overfit(),
        "whole_command": scores(
            "command", {n: n for n in commands}, commands, ("seconds", "times_loading", "photograph")
        ),
        "peers": peers(),
        "kernels": kernels(rows["bench_cpu"]),
        "stages": stages(rows["bench_cpu"]),
        "evaluation": evaluation(rows["evaluation"]),
    }
    seconds = [[r["cpu_seconds_per_image"] for r in rows["backbone_quality"] if r["variant"] == n] for n in BACKBONES]
    values = {
        "tables": tables,
        "source": {path.stem: source(path) for path in RESULTS.glob("*.json")},
        "photographs": photographs,
        "model": {name: {key: number(value) for key, value in row.items()} for name, row in found.items()},
        "backbone_cpu": ", ".join(number(median(times)) for times in seconds),
        "pretraining": {
            "minutes": number(curve["metrics"][-1]["seconds"] / 60, 0),
            "step": curve["points"][-1]["step"],
        },
        "run": training_runs(),
        "large": read("evaluation")["large"],
        "difference": max(row["largest_difference"] for row in rows["evaluation"]),
    }
    text = (RESULTS / "README.template.md").read_text(encoding="utf-8").format_map(values)
    main_text = _BLOCK.sub(lambda _: main_block(found, photographs), README.read_text(encoding="utf-8"))
    return {RESULTS / "README.md": text, README: main_text}


def main() -> None:
    """Write the documents, or compare them with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    check = parser.parse_args().check
    stale = {path: text for path, text in documents().items() if not path.is_file() or path.read_text("utf-8") != text}
    if check and stale:
        names = ", ".join(str(path.relative_to(README.parent)) for path in stale)
        raise SystemExit(f"{names} is out of date: run python benchmarks/results_tables.py")
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
