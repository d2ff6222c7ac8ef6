"""Label quality with a backbone of `sohes pretrain`, beside its control and peers, in one run.

    python benchmarks/backbone_quality.py --data DIR --backbone runs/pretrain --out
    benchmarks/results/backbone_quality.json

DIR is that of `label_quality.py`. The control has the same shape and random weights; the peers are the descriptor
`color-texture` and a pool of Felzenszwalb segmentations. Settings were chosen on one half of the photographs (`--half
tune`), scores are those of the other.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from label_quality import scored
from sohes_benchmarks.scripts import finished_rows, options, print_rows, write_report

from sohes_cli.vit.build import build_vit
from sohes_cli.vit.pretrained import find_backbone, load_vit
from sohes_cli.vit.tensor_file import write_tensors


def write_control(backbone: str, path: Path) -> None:
    """Write a backbone of the same shape with random weights."""
    _, description = load_vit(find_backbone(backbone))
    torch.manual_seed(0)
    write_tensors(path, build_vit(description["name"], description["shape"]).state_dict(), description)


def variants(backbone: str, control: Path, settings: list[str]) -> dict[str, list[str] | None]:
    """Variants by name, as settings of `sohes explore`; None for the peer."""
    return {
        "felzenszwalb": None,
        "color-texture": ["features.backbone=color-texture"],
        "random ViT": [f"features.backbone='{control}'", *settings],
        "pretrained ViT": [f"features.backbone='{backbone}'", *settings],
    }


def main() -> None:
    """Score all variants on all sets."""
    parser = options(__doc__, "--data", "--out", half="report")
    parser.add_argument("--backbone", required=True, help="as `sohes explore --backbone`")
    help_ = "settings of `sohes explore` for the backbone and its control"
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help=help_)
    arguments = parser.parse_args()
    rows = finished_rows(arguments.out, {"limit": arguments.limit})
    entries = {name: getattr(arguments, name) for name in ("backbone", "settings", "half", "limit")}
    with tempfile.TemporaryDirectory() as scratch:
        control = Path(scratch) / "control.safetensors"
        write_control(arguments.backbone, control)
        compared = variants(arguments.backbone, control, arguments.settings)
        for row in scored(compared, arguments.data, rows, arguments.limit, arguments.half):
            rows.append(row)
            write_report(arguments.out, rows, **entries)
    print_rows(rows, list(rows[0]))


if __name__ == "__main__":
    main()
