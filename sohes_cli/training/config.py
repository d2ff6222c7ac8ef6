"""The settings of `sohes train`: one frozen dataclass, a group for each part, and three presets.

Values of the losses, the optimizer and the jitter are Mask2Former's where the paper says nothing (Cheng et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sohes_cli.data.config import DataConfig
from sohes_cli.model.config import MODEL_PRESETS, ModelConfig
from sohes_cli.settings import require, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["TRAIN_PRESETS", "LossConfig", "OptimizerConfig", "RunConfig", "TrainConfig", "train_config"]


@dataclass(frozen=True)
class LossConfig:
    """What counts how much; matching weighs classes, masks and dice alike.

    Args:
        class_weight: of the cross entropy of entity against no object.
        mask_weight: of the binary cross entropy of mask logits at points.
        dice_weight: of the dice loss at points.
        ancestor_weight: of the ancestor loss.
        no_object_weight: of a query without a label in the cross entropy, against 1 of one with.
        points: K, at which a mask is compared with its label.
        oversample: times K points are drawn, of which the least certain are taken.
        importance: share of the K points that are such; the others are uniform.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    ancestor_weight: float = 1.0
    no_object_weight: float = 0.1
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        for name in ("class_weight", "mask_weight", "dice_weight", "ancestor_weight"):
            require(0 <= getattr(self, name) < math.inf, f"loss.{name}", getattr(self, name), "at least 0")
        require(0 < self.no_object_weight <= 1, "loss.no_object_weight", self.no_object_weight, "above 0 and at most 1")
        require(self.points >= 16, "loss.points", self.points, "at least 16")
        require(1 <= self.oversample <= 16, "loss.oversample", self.oversample, "from 1 to 16")
        require(0 <= self.importance <= 1, "loss.importance", self.importance, "a share in [0, 1]")


@dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move.

    Args:
        steps: optimizer steps.
        batch_size: photographs a step, of all processes together.
        accumulate: parts in which a process takes its share of a step, to save memory; results are the same but for batch norms.
        learning_rate: of AdamW after the warm-up.
        backbone_rate: that of the ViT over it.
        warmup: steps over which it rises linearly, as a share of all.
        schedule: `poly` (power 0.9, to 0), `cosine` (to 0) or `constant`.
        weight_decay: of matrices; norms, biases and embeddings have none.
        gradient_clip: largest norm of the gradient of all parameters.
        precision: `fp32`, `bf16`, `fp16`, or `auto`: bf16 on a GPU that has it and on a CPU with its instructions, else fp32.
        checkpointing: compute the ViT's blocks again in the backward pass, to save memory.
        compile: compile the ViT's blocks with torch.compile, which takes minutes and pays in long runs on a GPU.
    """

    steps: int = 40000
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 5e-5
    backbone_rate: float = 0.1
    warmup: float = 0.0
    schedule: str = "poly"
    weight_decay: float = 0.05
    gradient_clip: float = 0.01
    precision: str = "auto"
    checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            require(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "at least 1")
        require(0 < self.learning_rate < 1, "optimizer.learning_rate", self.learning_rate, "above 0 and below 1")
        require(0 <= self.backbone_rate <= 10, "optimizer.backbone_rate", self.backbone_rate, "from 0 to 10")
        require(0 <= self.warmup <= 1, "optimizer.warmup", self.warmup, "a share in [0, 1]")
        schedules = ("poly", "cosine", "constant")
        require(self.schedule in schedules, "optimizer.schedule", self.schedule, f"one of {', '.join(schedules)}")
        require(0 <= self.weight_decay < 1, "optimizer.weight_decay", self.weight_decay, "from 0 to 1")
        require(0 < self.gradient_clip < math.inf, "optimizer.gradient_clip", self.gradient_clip, "above 0")
        precisions = ("auto", "fp32", "bf16", "fp16")
        require(self.precision in precisions, "optimizer.precision", self.precision, f"one of {', '.join(precisions)}")


@dataclass(frozen=True)
class RunConfig:
    """What is written, and how often.

    Args:
        seed: of the weights, the order of photographs, the crops and the points.
        log_every: steps between two lines of `metrics.jsonl`.
        checkpoint_every: steps between two checkpoints; the last one of a run is always written.
        picture_every: steps between two pictures of predictions.
        keep: checkpoints that are kept, the newest.
    """

    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    picture_every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, "run.seed", self.seed, "from 0 to 2147483647")
        for name in ("log_every", "checkpoint_every", "picture_every", "keep"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights that `sohes train` ends with."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()


TRAIN_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "model": MODEL_PRESETS["tiny"],
        "data": {"image_size": 192, "scale": (0.5, 1.5), "max_labels": 100, "label_choice": "best"},
        "loss": {"points": 1024, "oversample": 2.0},
        "optimizer": {
            "steps": 150,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "backbone_rate": 1.0,
            "warmup": 0.05,
            "gradient_clip": 1.0,
        },
        "run": {"log_every": 10, "checkpoint_every": 50, "picture_every": 50},
    },
    "small": {"model": MODEL_PRESETS["small"], "optimizer": {"learning_rate": 1e-4}},
    "base": {"model": MODEL_PRESETS["base"]},
}
"""Named starting points: `tiny` for two CPU cores, `small` for one GPU, `base` with the values of the paper and of Mask2Former."""


def train_config(
    preset: str = "tiny",
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Resolve the settings of `sohes train`; see `sohes_cli.settings.resolve`."""
    return resolve(TrainConfig, TRAIN_PRESETS, preset, file, assignments, flags)
