"""What a backbone of `sohes pretrain` is worth: the labels of `sohes explore` with it, beside its control and its peers, in one run.

    python benchmarks/backbone_quality.py --data DIR --backbone runs/pretrain --out benchmarks/results/backbone_quality.json

DIR is that of `label_quality.py`. The control has the same shape and random weights; the peers are the descriptor `color-texture` and a
pool of Felzenszwalb segmentations. Settings were chosen on one half of the photographs (`--half tune`), scores are those of the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch
from label_quality import finished_rows, one_thread, print_table, score
from sohes_benchmarks.conditions import conditions

from sohes_cli.vit.build import build_vit
from sohes_cli.vit.pretrained import find_backbone, load_vit
from sohes_cli.vit.tensor_file import write_tensors


def write_control(backbone: str, path: Path) -> None:
    """Write a backbone of the same shape with random weights."""
    _, description = load_vit(find_backbone(backbone))
    torch.manual_seed(0)
    write_tensors(path, build_vit(description["name"], description["shape"]).state_dict(), description)


def variants(backbone: str, control: Path, settings: list[str]) -> dict[str, list[str] | None]:
    """What is compared: names and the settings of `sohes explore`, None for the peer that is none."""
    return {
        "felzenszwalb": None,
        "color-texture": ["features.backbone=color-texture"],
        "random ViT": [f"features.backbone='{control}'", *settings],
        "pretrained ViT": [f"features.backbone='{backbone}'", *settings],
    }


def main() -> None:
    """Score all variants on all sets and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", required=True, help="as `sohes explore --backbone`")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="*",
        default=[],
        help="settings of `sohes explore` for the backbone and its control",
    )
    parser.add_argument("--half", default="report", choices=("tune", "report", "all"))
    parser.add_argument("--limit", type=int, default=0, help="images of each half, 0 for all")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = finished_rows(arguments.out, arguments.limit)
    done = {(row["variant"], row["set"]) for row in rows}
    folders = sorted(p.parent for p in arguments.data.glob("*/annotations.json"))
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(2, initializer=one_thread) as pool:
        control = Path(scratch) / "control.safetensors"
        write_control(arguments.backbone, control)
        for (name, settings), folder in product(
            variants(arguments.backbone, control, arguments.settings).items(), folders
        ):
            if (name, folder.name) in done:
                continue
            rows.append(
                {"variant": name, "set": folder.name, **score(pool, folder, settings, arguments.limit, arguments.half)}
            )
            _write(arguments, rows)
    print_table(rows)


def _write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    settings = {
        "backbone": arguments.backbone,
        "settings": arguments.settings,
        "half": arguments.half,
        "limit": arguments.limit,
    }
    arguments.out.write_text(json.dumps({"conditions": conditions(), **settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
