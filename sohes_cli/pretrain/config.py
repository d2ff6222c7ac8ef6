"""Settings of `sohes pretrain`, and presets for one GPU and for two CPU cores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from sohes_cli.settings import (
    PRECISIONS,
    Group,
    count,
    is_increasing_pair,
    probability,
    require,
    resolve,
    setting,
    share,
)

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

_OWN = "above 0, or 0 for the model's own"

_pair_of_shares = partial(
    setting, above=0, maximum=1, rule=is_increasing_pair, allowed="two increasing shares in (0, 1]"
)
_temperature = partial(setting, minimum=0.01, maximum=1)


@dataclass(frozen=True)
class ModelConfig(Group, name="model"):
    """Network to train."""

    name: str = setting(
        "vit_tiny_patch16_224", "timm name of a VisionTransformer.", rule=bool, allowed="the timm name of a ViT"
    )
    patch_size: int = setting(
        8, "Side of a patch.", minimum=0, maximum=64, allowed="pixels from 1 to 64, or 0 for the model's own"
    )
    embed_dim: int = setting(256, "Channels of a token.", minimum=0, allowed=_OWN)
    depth: int = setting(6, "Number of transformer blocks.", minimum=0, allowed=_OWN)
    num_heads: int = setting(4, "Number of attention heads.", minimum=0, allowed=_OWN)
    drop_path: float = share(0.1, "Stochastic depth of the last block, linear from 0.", below=1, noun="a rate")
    weights: str = setting("", "Weights file to start from; empty for random weights.")

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = not (self.embed_dim and self.num_heads) or self.embed_dim % self.num_heads == 0
        require(fits, "model.embed_dim", self.embed_dim, f"a multiple of model.num_heads ({self.num_heads})")

    @property
    def shape(self) -> dict[str, int]:
        """Given numbers of the ViT, as arguments of `timm.create_model`."""
        numbers = {name: getattr(self, name) for name in ("patch_size", "embed_dim", "depth", "num_heads")}
        return {name: value for name, value in numbers.items() if value}


@dataclass(frozen=True)
class ViewsConfig(Group, name="views"):
    """Crops of a photograph and their augmentation."""

    working_size: int = setting(
        320, "Square root of the pixels of a photograph before cropping.", minimum=32, maximum=4096, unit="pixels"
    )
    global_size: int = setting(
        160, "Side of the two global crops, a multiple of the patch size.", minimum=16, maximum=1024, unit="pixels"
    )
    global_scale: tuple[float, ...] = _pair_of_shares(
        (0.3, 1.0), "Range of the area of a global crop over the photograph's."
    )
    local_views: int = setting(6, "Number of local crops, for the student only.", minimum=0, maximum=64)
    local_size: int = setting(
        64,
        "Side of the local crops, a multiple of the patch size.",
        minimum=16,
        allowed="pixels from 16 to views.global_size",
    )
    local_scale: tuple[float, ...] = _pair_of_shares(
        (0.05, 0.3), "Range of the area of a local crop over the photograph's."
    )
    jitter: float = probability(0.8, "Probability of color jitter.")
    jitter_strength: float = setting(1.0, "Strength of jitter; 1 is DINO's 0.4, 0.4, 0.2, 0.1.", minimum=0, maximum=2)
    grayscale: float = probability(0.2, "Probability of a grayscale view.")
    blur: float = probability(0.3, "Probability of a blurred view.")
    mask_probability: float = probability(0.5, "Probability of a masked global view of the student.")
    mask_ratio: tuple[float, ...] = _pair_of_shares((0.1, 0.5), "Smallest and largest share of masked patches.")
    pairs: int = setting(96, "Pairs of corresponding patches for the dense term.", minimum=1, maximum=65536)
    pair_radius: float = setting(1.0, "Largest distance of a pair in patches.", minimum=0, maximum=16, unit="patches")

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.local_size <= self.global_size
        require(fits, "views.local_size", self.local_size, "pixels from 16 to views.global_size")


@dataclass(frozen=True)
class LossConfig(Group, name="loss"):
    """Terms of the loss; a weight of 0 leaves a term out."""

    image_weight: float = setting(1.0, "Weight of DINO's term: class tokens predict the teacher's of another view.")
    masked_weight: float = setting(1.0, "Weight of iBOT's term: masked patches predict the teacher's unmasked ones.")
    match_weight: float = setting(1.0, "Weight of the dense term: find the teacher's patch of the same place.")
    image_prototypes: int = setting(4096, "Number of clusters of class tokens.", minimum=2, maximum=2**20)
    patch_prototypes: int = setting(4096, "Number of clusters of patches.", minimum=2, maximum=2**20)
    hidden_dim: int = count(1024, "Hidden channels of the projection heads.")
    bottleneck_dim: int = count(128, "Channels of the vectors compared with the prototypes.")
    student_temperature: float = _temperature(0.1, "Temperature of the student's softmax.")
    teacher_temperature: float = _temperature(0.06, "Temperature of the teacher's assignment after the warm-up.")
    teacher_temperature_start: float = _temperature(0.04, "Temperature of the teacher's assignment at step 0.")
    temperature_warmup: float = share(0.1, "Share of the run over which the teacher's temperature rises.")
    match_temperature: float = _temperature(0.1, "Temperature of the softmax over candidate patches.")
    sinkhorn_iterations: int = count(3, "Sinkhorn-Knopp iterations that balance the teacher's assignments.")

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = [self.image_weight, self.masked_weight, self.match_weight]
        fits = all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0
        require(fits, "loss.*_weight", weights, "at least 0 and one above")


@dataclass(frozen=True)
class OptimizerConfig(Group, name="optimizer"):
    """Optimization of the student and moving average of the teacher."""

    epochs: int = count(300, "Passes over the photographs; unused where `steps` is given.")
    steps: int = setting(
        0, "Optimizer steps; 0 to count in epochs.", minimum=0, allowed="at least 1, or 0 to count in epochs"
    )
    batch_size: int = setting(256, "Photographs a step, over all processes.", minimum=2)
    learning_rate: float = setting(2e-3, "Peak rate; falls to a hundredth along a cosine.", above=0, below=1)
    warmup: float = share(0.05, "Share of the run over which the learning rate rises linearly.")
    weight_decay: float = share(
        0.04, "Initial weight decay; none for biases, norms, embeddings and tokens.", below=1, allowed="from 0 to 1"
    )
    weight_decay_end: float = share(0.2, "Final weight decay, reached along a cosine.", below=1, allowed="from 0 to 1")
    teacher_momentum: float = setting(0.994, "Initial EMA decay; rises to 1 along a cosine.", minimum=0, maximum=1)
    gradient_clip: float = setting(3.0, "Largest norm of the gradient of all parameters.", above=0)
    freeze_prototypes: float = share(0.01, "Share of the run over which the prototypes are frozen.")
    precision: str = setting(
        "auto",
        "auto: bf16 on a GPU or CPU with its instructions, else fp32.",
        choices=PRECISIONS,
        allowed="auto, fp32 or bf16",
    )


@dataclass(frozen=True)
class RunConfig(Group, name="run"):
    """Seed, logs and checkpoints."""

    seed: int = setting(0, "Seed of weights, order and views.", minimum=0, maximum=2**31 - 1)
    log_every: int = count(20, "Steps between two lines of `metrics.jsonl`.")
    checkpoint_every: int = count(250, "Steps between two checkpoints; the last step always saves one.")
    keep: int = count(3, "Newest checkpoints to keep.")


@dataclass(frozen=True)
class PretrainConfig:
    """All settings that determine the weights of `sohes pretrain`."""

    model: ModelConfig = ModelConfig()
    views: ViewsConfig = ViewsConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()

    def steps_of(self, photographs: int) -> int:
        """Return the optimizer steps of a run over this many photographs."""
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
"""`default` for thousands of photographs and one GPU, `cpu` for the same photographs and two cores."""

pretrain_config = partial(resolve, PretrainConfig, PRETRAIN_PRESETS)
"""Resolve the settings of `sohes pretrain` from `preset`, `file`, `assignments` and `flags`, as `resolve` does."""
