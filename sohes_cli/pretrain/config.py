"""The settings of `sohes pretrain`: one frozen dataclass, a group for each step, and presets for one GPU and for two CPU cores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.settings import require, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "PRETRAIN_PRESETS",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "RunConfig",
    "ViewsConfig",
    "pretrain_config",
]


@dataclass(frozen=True)
class ModelConfig:
    """The network that is trained.

    Args:
        name: a timm VisionTransformer; the numbers below, where they are not 0, replace its own.
        patch_size: side of a patch in pixels.
        embed_dim: channels of a token.
        depth: transformer blocks.
        num_heads: attention heads.
        drop_path: rate of stochastic depth at the last block of the student, rising linearly from 0.
        weights: a weights file to start from; empty for random weights.
    """

    name: str = "vit_tiny_patch16_224"
    patch_size: int = 8
    embed_dim: int = 256
    depth: int = 6
    num_heads: int = 4
    drop_path: float = 0.1
    weights: str = ""

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name", self.name, "the timm name of a ViT")
        require(
            0 <= self.patch_size <= 64,
            "model.patch_size",
            self.patch_size,
            "pixels from 1 to 64, or 0 for the model's own",
        )
        for name in ("embed_dim", "depth", "num_heads"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "above 0, or 0 for the model's own")
        fits = not (self.embed_dim and self.num_heads) or self.embed_dim % self.num_heads == 0
        require(fits, "model.embed_dim", self.embed_dim, f"a multiple of model.num_heads ({self.num_heads})")
        require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "a rate in [0, 1)")

    @property
    def shape(self) -> dict[str, int]:
        """The numbers that replace timm's own, as arguments of `timm.create_model`."""
        numbers = {name: getattr(self, name) for name in ("patch_size", "embed_dim", "depth", "num_heads")}
        return {name: value for name, value in numbers.items() if value}


@dataclass(frozen=True)
class ViewsConfig:
    """The crops of a photograph that the networks see.

    Args:
        working_size: square root of the number of pixels to which a photograph is reduced before it is cropped.
        global_size: side of the two global crops in pixels, a multiple of the patch size.
        global_scale: smallest and largest area of a global crop, as a share of the photograph.
        local_views: number of local crops, which only the student sees.
        local_size: their side in pixels, a multiple of the patch size.
        local_scale: their area, as above.
        jitter: probability that a view's brightness, contrast, saturation and hue are changed.
        jitter_strength: how much: 1 is DINO's (0.4, 0.4, 0.2, 0.1).
        grayscale: probability that a view loses its color.
        blur: probability that a view is blurred.
        mask_probability: probability that patches of a student's global view are masked.
        mask_ratio: smallest and largest share of patches that are then masked.
        pairs: pairs of patches at the same place in two views that are drawn of a photograph, for the dense term.
        pair_radius: how far from the same place the second one may lie, in patches of its view.
    """

    working_size: int = 320
    global_size: int = 160
    global_scale: tuple[float, ...] = (0.3, 1.0)
    local_views: int = 6
    local_size: int = 64
    local_scale: tuple[float, ...] = (0.05, 0.3)
    jitter: float = 0.8
    jitter_strength: float = 1.0
    grayscale: float = 0.2
    blur: float = 0.3
    mask_probability: float = 0.5
    mask_ratio: tuple[float, ...] = (0.1, 0.5)
    pairs: int = 96
    pair_radius: float = 1.0

    def __post_init__(self) -> None:
        require(32 <= self.working_size <= 4096, "views.working_size", self.working_size, "pixels from 32 to 4096")
        require(16 <= self.global_size <= 1024, "views.global_size", self.global_size, "pixels from 16 to 1024")
        require(
            16 <= self.local_size <= self.global_size,
            "views.local_size",
            self.local_size,
            "pixels from 16 to views.global_size",
        )
        require(0 <= self.local_views <= 64, "views.local_views", self.local_views, "from 0 to 64")
        for name in ("global_scale", "local_scale", "mask_ratio"):
            pair = getattr(self, name)
            require(
                len(pair) == 2 and 0 < pair[0] <= pair[1] <= 1, f"views.{name}", pair, "two increasing shares in (0, 1]"
            )
        for name in ("jitter", "grayscale", "blur", "mask_probability"):
            require(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "a probability in [0, 1]")
        require(1 <= self.pairs <= 65536, "views.pairs", self.pairs, "from 1 to 65536")
        require(0 <= self.pair_radius <= 16, "views.pair_radius", self.pair_radius, "patches from 0 to 16")
        require(0 <= self.jitter_strength <= 2, "views.jitter_strength", self.jitter_strength, "from 0 to 2")


@dataclass(frozen=True)
class LossConfig:
    """What the student learns of the teacher; a weight of 0 leaves a term out.

    Args:
        image_weight: of DINO's term: the class token of a view predicts the teacher's for another view.
        masked_weight: of iBOT's term: a masked patch predicts the teacher's, which sees it.
        match_weight: of the dense term: of many patches, one recognizes the teacher's patch at its place in another view.
        image_prototypes: number of clusters of class tokens.
        patch_prototypes: number of clusters of patches.
        hidden_dim: of the projection heads.
        bottleneck_dim: of the vectors that are compared with the prototypes.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's assignment at the end of the warm-up.
        teacher_temperature_start: and at its beginning.
        temperature_warmup: share of the run over which it rises.
        match_temperature: of the softmax over the patches to choose from.
        sinkhorn_iterations: of the Sinkhorn-Knopp balancing of the teacher's assignments.
    """

    image_weight: float = 1.0
    masked_weight: float = 1.0
    match_weight: float = 1.0
    image_prototypes: int = 4096
    patch_prototypes: int = 4096
    hidden_dim: int = 1024
    bottleneck_dim: int = 128
    student_temperature: float = 0.1
    teacher_temperature: float = 0.06
    teacher_temperature_start: float = 0.04
    temperature_warmup: float = 0.1
    match_temperature: float = 0.1
    sinkhorn_iterations: int = 3

    def __post_init__(self) -> None:
        weights = [getattr(self, f"{name}_weight") for name in ("image", "masked", "match")]
        require(
            all(0 <= w < math.inf for w in weights) and sum(weights) > 0,
            "loss.*_weight",
            weights,
            "at least 0 and one above",
        )
        for name in ("image_prototypes", "patch_prototypes"):
            require(2 <= getattr(self, name) <= 2**20, f"loss.{name}", getattr(self, name), "from 2 to 1048576")
        for name in ("hidden_dim", "bottleneck_dim", "sinkhorn_iterations"):
            require(getattr(self, name) >= 1, f"loss.{name}", getattr(self, name), "at least 1")
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start", "match_temperature"):
            require(0.01 <= getattr(self, name) <= 1, f"loss.{name}", getattr(self, name), "from 0.01 to 1")
        require(
            0 <= self.temperature_warmup <= 1, "loss.temperature_warmup", self.temperature_warmup, "a share in [0, 1]"
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How the student's parameters move, and how the teacher's follow.

    Args:
        epochs: passes over the photographs; not used where `steps` is given.
        steps: optimizer steps; 0 to count in epochs.
        batch_size: photographs a step, of all processes together.
        learning_rate: of AdamW after the warm-up; it falls to a hundredth along a cosine.
        warmup: share of the run over which it rises linearly.
        weight_decay: at the beginning; biases, norms, embeddings and single tokens have none.
        weight_decay_end: at the end, along a cosine.
        teacher_momentum: of the moving average at the beginning; it rises to 1 along a cosine.
        gradient_clip: largest norm of the gradient of all parameters.
        freeze_prototypes: share of the run over which the prototypes stay as they were drawn.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU that has it and on a CPU with its instructions, else fp32.
    """

    epochs: int = 300
    steps: int = 0
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.04
    weight_decay_end: float = 0.2
    teacher_momentum: float = 0.994
    gradient_clip: float = 3.0
    freeze_prototypes: float = 0.01
    precision: str = "auto"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "optimizer.epochs", self.epochs, "at least 1")
        require(self.steps >= 0, "optimizer.steps", self.steps, "at least 1, or 0 to count in epochs")
        require(self.batch_size >= 2, "optimizer.batch_size", self.batch_size, "at least 2")
        require(0 < self.learning_rate < 1, "optimizer.learning_rate", self.learning_rate, "above 0 and below 1")
        for name in ("weight_decay", "weight_decay_end"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "from 0 to 1")
        for name in ("warmup", "freeze_prototypes"):
            require(0 <= getattr(self, name) <= 1, f"optimizer.{name}", getattr(self, name), "a share in [0, 1]")
        require(0 <= self.teacher_momentum <= 1, "optimizer.teacher_momentum", self.teacher_momentum, "from 0 to 1")
        require(0 < self.gradient_clip < math.inf, "optimizer.gradient_clip", self.gradient_clip, "above 0")
        require(self.precision in ("auto", "fp32", "bf16"), "optimizer.precision", self.precision, "auto, fp32 or bf16")


@dataclass(frozen=True)
class RunConfig:
    """What is written, and how often.

    Args:
        seed: of the weights, the order of photographs and the views.
        log_every: steps between two lines of `metrics.jsonl`.
        checkpoint_every: steps between two checkpoints; the last one of a run is always written.
        keep: checkpoints that are kept, the newest.
    """

    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 250
    keep: int = 3

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, "run.seed", self.seed, "from 0 to 2147483647")
        for name in ("log_every", "checkpoint_every", "keep"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights that `sohes pretrain` ends with."""

    model: ModelConfig = ModelConfig()
    views: ViewsConfig = ViewsConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()

    def steps_of(self, photographs: int) -> int:
        """Optimizer steps of a run over this many photographs."""
        return self.optimizer.steps or max(1, self.optimizer.epochs * photographs // self.optimizer.batch_size)


PRETRAIN_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "cpu": {
        "model": {"drop_path": 0.0},
        "views": {"working_size": 256, "global_size": 112, "local_views": 2, "local_size": 48, "jitter_strength": 0.5},
        "loss": {"image_weight": 0.0, "masked_weight": 0.0, "hidden_dim": 512},
        "optimizer": {"epochs": 12, "batch_size": 32, "learning_rate": 1e-3, "teacher_momentum": 0.98},
        "run": {"checkpoint_every": 100},
    },
}
"""Named starting points: `default` for thousands of photographs and one GPU, `cpu` for the same photographs and two cores."""


def pretrain_config(
    preset: str = "default",
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> PretrainConfig:
    """Resolve the settings of `sohes pretrain`; see `sohes_cli.settings.resolve`."""
    return resolve(PretrainConfig, PRETRAIN_PRESETS, preset, file, assignments, flags)
