"""Tiny runs of `sohes train`, with steps of a few tenths of a second: settings, labels, and readers of run files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file

from sohes_cli.labels.manifest import Manifest, open_store
from sohes_cli.structures import Annotation, LabelRecord
from sohes_cli.training.config import TrainConfig, train_config
from sohes_cli.training.learner import Learner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from torch import Tensor

TINY = (
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.interactions=2",
    "model.prior_channels=8",
    "model.adapter_heads=2",
    "model.adapter_points=2",
    "model.hidden_dim=32",
    "model.heads=2",
    "model.pixel_layers=1",
    "model.pixel_points=2",
    "model.pixel_mlp_dim=32",
    "model.decoder_layers=2",
    "model.decoder_mlp_dim=32",
    "model.queries=12",
    "data.image_size=64",
    "data.scale=[0.6,1.5]",
    "data.min_area_px=4",
    "loss.points=64",
    "optimizer.precision=fp32",
    "optimizer.batch_size=4",
    "run.log_every=1",
    "run.picture_every=1000",
)
FLAGS = tuple(part for assignment in TINY for part in ("--set", assignment))
"""`TINY` for the command line."""

SIDES = {
    "a.png": (72, 96),
    "b.png": (96, 64),
    "sub/c.png": (80, 80),
    "d.png": (64, 128),
    "e.png": (90, 70),
    "f.png": (64, 64),
}
_TIMES = ("seconds", "images_per_second", "memory_gib")


def tiny_train_config(steps: int, *assignments: str) -> TrainConfig:
    """Resolve the settings of a tiny run; later assignments win."""
    return train_config("tiny", assignments=(*TINY, f"optimizer.steps={steps}", *assignments))


def write_scene(folder: Path) -> Path:
    """Write six images of nested rectangles to `images` and their labels to `labels`; the last image has none."""
    images, labels = folder / "images", folder / "labels"
    store = open_store(labels, Manifest("explore", "../images", {}, {}, {}))
    for number, (name, (height, width)) in enumerate(SIDES.items()):
        rng = np.random.default_rng(number)
        pixels = rng.integers(90, 120, (height, width, 3)).astype(np.uint8)
        boxes = [] if name == "f.png" else nested_boxes(height, width, rng)
        for top, left, bottom, right, _ in boxes:
            pixels[top:bottom, left:right] = rng.integers(0, 255, 3)
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(images / name)
        store.write(
            LabelRecord(name, height, width, tuple(_annotation(i, box, height, width) for i, box in enumerate(boxes)))
        )
    return labels


def nested_boxes(height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int, int, int]]:
    """Draw two wholes, each with a part, the first of which has a part: top, left, bottom, right, parent (-1: none)."""
    middle = width // 2 + int(rng.integers(-6, 6))
    top, bottom = int(rng.integers(2, 8)), height - int(rng.integers(2, 8))
    return [
        (top, 3, bottom, middle - 2, -1),
        (top, middle + 2, bottom, width - 3, -1),
        (top + 8, 8, bottom - 8, middle - 6, 0),
        (top + 8, middle + 6, bottom - 8, width - 8, 1),
        (top + 14, 12, bottom - 14, middle - 12, 2),
    ]


def _annotation(index: int, box: tuple[int, int, int, int, int], height: int, width: int) -> Annotation:
    top, left, bottom, right, parent = box
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    rle = coco_mask.encode(mask)
    level = 0 if parent < 0 else 1 + (index == 4)
    return Annotation(
        id=index + 1,
        segmentation={"size": [height, width], "counts": rle["counts"].decode()},
        area=int(mask.sum()),
        bbox_xywh=(left, top, right - left, bottom - top),
        score=1 - index / 10,
        level=level,
        parent=None if parent < 0 else parent + 1,
    )


def after_steps(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], object]]) -> None:
    """Run actions after steps, by the number of the step from 1."""
    step = Learner.step_on

    def changed(self: Learner, branches: Any, number: int, diagnosed: bool = False) -> dict[str, float]:
        numbers = step(self, branches, number, diagnosed)
        actions.get(number + 1, lambda: None)()
        return numbers

    monkeypatch.setattr(Learner, "step_on", changed)


def steps_kept(out: Path) -> list[int]:
    """List the steps of a run's checkpoints."""
    return sorted(int(path.stem.removeprefix("step-")) for path in out.glob("checkpoints/step-*.safetensors"))


def tensors_of(out: Path, step: int) -> dict[str, Tensor]:
    """Read the tensors of the checkpoint of a step."""
    return dict(load_file(out / "checkpoints" / f"step-{step:08d}.safetensors"))


def lines_of(out: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`, without times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in lines]


def assert_same_runs(out: Path, other: Path, steps: int) -> None:
    """Compare metrics, last checkpoint and models, bit for bit."""
    assert lines_of(out) == lines_of(other)
    found, wanted = tensors_of(out, steps), tensors_of(other, steps)
    assert found.keys() == wanted.keys()
    assert [name for name in found if not found[name].equal(wanted[name])] == []
    names = {path.name for path in other.glob("*.safetensors")}
    assert {path.name for path in out.glob("*.safetensors")} == names
    for name in names - {"best.safetensors"}:
        assert (out / name).read_bytes() == (other / name).read_bytes()
    if "best.safetensors" in names:  # its description holds the mean loss since the last checkpoint
        best, others = (load_file(folder / "best.safetensors") for folder in (out, other))
        assert [key for key in best if not best[key].equal(others[key])] == []
