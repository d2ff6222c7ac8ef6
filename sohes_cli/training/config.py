"""Settings of `sohes train`, and three presets.

Values of the losses, the optimizer and the jitter are Mask2Former's where the paper gives none (Cheng et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sohes_cli.data.config import DataConfig
from sohes_cli.model.config import MODEL_PRESETS, ModelConfig
from sohes_cli.settings import PRECISIONS, Group, count, resolve, setting, share

__all__ = ["TRAIN_PRESETS", "LossConfig", "OptimizerConfig", "RunConfig", "TrainConfig", "train_config"]


@dataclass(frozen=True)
class LossConfig(Group, name="loss"):
    """Weights of the losses, also of the matching costs, and point sampling."""

    class_weight: float = setting(2.0, "Weight of the cross entropy of entity against no object.", minimum=0)
    mask_weight: float = setting(5.0, "Weight of the binary cross entropy of mask logits at points.", minimum=0)
    dice_weight: float = setting(5.0, "Weight of the dice loss at points.", minimum=0)
    ancestor_weight: float = setting(1.0, "Weight of the ancestor loss.", minimum=0)
    no_object_weight: float = setting(
        0.1, "Weight of an unmatched query in the cross entropy, against 1 of a matched one.", above=0, maximum=1
    )
    points: int = setting(12544, "K, points at which a mask is compared with its label.", minimum=16)
    oversample: float = setting(3.0, "Candidates over K, of which the least certain are kept.", minimum=1, maximum=16)
    importance: float = share(0.75, "Share of the least certain among the K points; the others are uniform.")


@dataclass(frozen=True)
class OptimizerConfig(Group, name="optimizer"):
    """Optimization, precision and memory."""

    steps: int = count(40000, "Optimizer steps.")
    batch_size: int = count(16, "Photographs a step, over all processes.")
    accumulate: int = count(1, "Gradient accumulation of a step, to save memory; changes batch norms only.")
    learning_rate: float = setting(5e-5, "AdamW's after the warm-up.", above=0, below=1)
    backbone_rate: float = setting(0.1, "Factor of the ViT's learning rate.", minimum=0, maximum=10)
    warmup: float = share(0.0, "Share of the steps over which the learning rate rises linearly.")
    schedule: str = setting(
        "poly", "`poly` (power 0.9, to 0), `cosine` (to 0) or `constant`.", choices=("poly", "cosine", "constant")
    )
    weight_decay: float = share(
        0.05, "Weight decay of matrices; none for norms, biases and embeddings.", below=1, allowed="from 0 to 1"
    )
    gradient_clip: float = setting(0.01, "Largest norm of the gradient of all parameters.", above=0)
    precision: str = setting(
        "auto", "auto: bf16 on a GPU or CPU with its instructions, else fp32.", choices=(*PRECISIONS, "fp16")
    )
    checkpointing: bool = setting(False, "Recompute the ViT's blocks in the backward pass, to save memory.")
    compile: bool = setting(False, "Compile the ViT's blocks with torch.compile, a gain in long runs on a GPU.")


@dataclass(frozen=True)
class RunConfig(Group, name="run"):
    """Seed, logs, pictures and checkpoints."""

    seed: int = setting(0, "Seed of weights, order, crops and points.", minimum=0, maximum=2**31 - 1)
    log_every: int = count(20, "Steps between two lines of `metrics.jsonl`.")
    checkpoint_every: int = count(500, "Steps between two checkpoints; the last step always saves one.")
    picture_every: int = count(1000, "Steps between two pictures of predictions.")
    keep: int = count(3, "Newest checkpoints to keep.")


@dataclass(frozen=True)
class TrainConfig:
    """All settings that determine the weights of `sohes train`."""

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
"""`tiny` for two CPU cores, `small` for one GPU, `base` with the values of the paper and of Mask2Former."""

train_config = partial(resolve, TrainConfig, TRAIN_PRESETS)
"""Resolve the settings of `sohes train` from `preset`, `file`, `assignments` and `flags`, as `resolve` does."""
