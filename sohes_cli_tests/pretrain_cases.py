"""A run of `sohes pretrain` so small that a step takes a few hundredths of a second, and what it leaves behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from sohes_cli.pretrain.config import PretrainConfig, pretrain_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

TINY = (
    "model.embed_dim=64",
    "model.depth=2",
    "model.num_heads=2",
    "views.global_size=64",
    "views.local_size=32",
    "views.local_views=2",
    "views.working_size=96",
    "loss.hidden_dim=64",
    "loss.bottleneck_dim=16",
    "loss.image_prototypes=32",
    "loss.patch_prototypes=32",
    "optimizer.precision=fp32",
    "optimizer.batch_size=4",
    "run.log_every=1",
)
FLAGS = tuple(part for assignment in TINY for part in ("--set", assignment))
"""The same for the command line."""

_TIMES = ("seconds", "images_per_second", "memory_gib")


def tiny_config(steps: int, *assignments: str) -> PretrainConfig:
    """The settings of a tiny run of so many steps; later assignments beat earlier ones."""
    return pretrain_config(assignments=(*TINY, f"optimizer.steps={steps}", *assignments))


def steps_saved(out: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(int(path.stem.removeprefix("step-")) for path in out.glob("checkpoints/step-*.safetensors"))


def tensors_after(out: Path, step: int) -> dict[str, Tensor]:
    """What the checkpoint of a step holds."""
    return dict(load_file(out / "checkpoints" / f"step-{step:08d}.safetensors"))


def metrics_of(out: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, each of which must be JSON, without times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in lines]


def assert_equal_runs(out: Path, other: Path, steps: int) -> None:
    """The same metrics, the same last checkpoint and the same backbone, bit for bit."""
    assert metrics_of(out) == metrics_of(other)
    found, wanted = tensors_after(out, steps), tensors_after(other, steps)
    assert found.keys() == wanted.keys()
    assert [name for name in found if not found[name].equal(wanted[name])] == []
    assert (out / "backbone.safetensors").read_bytes() == (other / "backbone.safetensors").read_bytes()
