"""A whole optimizer step of `sohes train`: forward, matching, losses, backward, clipping and AdamW, beside that of
Mask2Former.

Our step is also taken with one fast operation at a time replaced by its plain form. Checked first: the losses of the
first step from the same weights, and for ours the norm of the gradient, are those of a step in which all operations are
plain.
"""

from __future__ import annotations

import copy
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sohes_benchmarks.memory import process_memory
from sohes_benchmarks.rows import Case
from sohes_benchmarks.stages.backends import DTYPES, PRECISIONS, chosen_backends, variant_name, variant_obstacle
from sohes_benchmarks.stages.mask2former import Mask2FormerLearner, mask2former_obstacle
from sohes_benchmarks.stages.scenes import scene_batch
from sohes_benchmarks.workload import Benchmark, Provider, Workload
from sohes_cli.training.config import TRAIN_PRESETS, train_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sohes_benchmarks.workload import Device, Plan
    from sohes_cli.training.config import TrainConfig
    from sohes_cli.training.learner import Learner

__all__ = ["BENCHMARK", "LABELS", "SIDES", "Evidence", "step_case", "step_cases", "step_config"]

SIDES: dict[Device, int] = {"cpu": 256, "cuda": 1024}
"""Of the images in pixels, by device."""

LABELS: dict[Device, int] = {"cpu": 40, "cuda": 100}
"""Of an image."""

_IMAGES = 2  # of a step; the share of one of 8 GPUs in batches of 16
_QUICK_SIDE, _QUICK_LABELS = 64, 6
_BOUNDS = {"float32": 1e-4, "bfloat16": 0.02}  # relative, of a loss of ours
_PEER_BOUND = 0.02  # its points are other ones, and it reads labels bilinearly
_REFERENCES = {"deformable_attention": "reference", "ancestor_loss": "reference", "attention": "plain"}
_REPLACED = {
    "cpu": {"deformable_attention": "reference", "attention": "plain"},
    "cuda": {"deformable_attention": "reference", "ancestor_loss": "reference", "attention": "torch"},
}
_NOTE = (
    "Random images with nested ellipses as labels, no stochastic depth. transformers' Mask2Former has our "
    "backbone (the ViT with its "
    "adapter) and decoders equal to ours in width, depth, queries and points, so what differs is the decoders, "
    "the matching and the "
    "losses; it has no ancestor head and no ancestor loss. Its labels lie on the device as float32 beforehand, "
    "ours are copied there as "
    "bits in each step."
)


class Evidence(NamedTuple):
    """The numbers of a first step, and how far they may be from the truth.

    Args:
        numbers: losses and the gradient's norm by name.
        bound: largest relative difference.
    """

    numbers: Mapping[str, float]
    bound: float = 0.0


def step_case(
    preset: str, device: Device, *, side: int, labels: int, images: int = _IMAGES, stage: str = "train"
) -> Case:
    """A case with the model of a preset of `sohes train`.

    Args:
        preset: `tiny`, `small` or `base`.
        device: decides the precision.
        side: of the square images, in pixels.
        labels: of each image.
        images: of a step.
        stage: whose case it is.
    """
    shapes = {
        "images": (images, 3, side, side),
        "labels": (labels,),
        "points": (step_config(preset, "float32").loss.points,),
    }
    return Case(stage, f"{preset}, {side} px", "step", DTYPES[device], shapes)


def step_cases(plan: Plan, stage: str = "train") -> list[Case]:
    """The cases of a plan for a stage that takes steps."""
    if plan.quick:
        return [step_case("tiny", plan.device, side=_QUICK_SIDE, labels=_QUICK_LABELS, images=1, stage=stage)]
    presets = (
        ("tiny",) if plan.device == "cpu" else TRAIN_PRESETS
    )  # the script of this stage has the others, which take minutes each there
    size = {"side": SIDES[plan.device], "labels": LABELS[plan.device]}
    return [step_case(preset, plan.device, **size, stage=stage) for preset in presets]


def step_config(preset: str, dtype: str) -> TrainConfig:
    """The settings of phase 2 from which the models of a case are made: random weights, no schedule."""
    settings = ("model.weights=random", "model.drop_path=0.0", f"optimizer.precision={PRECISIONS[dtype]}")
    return train_config(preset, assignments=(*settings, "optimizer.schedule=constant", "optimizer.warmup=0.0"))


class _Learners:
    """Providers of the steps of a case, built on first use.

    Args:
        case: see `step_case`.
        device: where they learn.
    """

    def __init__(self, case: Case, device: Device) -> None:
        (images, _, side, _), (labels,) = case.shapes["images"], case.shapes["labels"]
        self.dtype, self.device = case.dtype, device
        self.config = step_config(case.name.partition(",")[0], case.dtype)
        self.batch = scene_batch(images, labels, side)

    @cached_property
    def ours(self) -> Learner:
        """One for all backends: which of them a step takes changes nothing that is kept."""
        from sohes_cli.training.learner import Learner

        return Learner(self.config, "cpu" if self.device == "cpu" else "auto")

    @cached_property
    def peer(self) -> Mask2FormerLearner:
        """The peer, with the weights that ours starts with."""
        import torch

        from sohes_cli.model.segmentation_model import EntityModel
        from sohes_cli.vit.build import use_fused_attention

        torch.manual_seed(self.config.run.seed)
        model = EntityModel(self.config.model)
        use_fused_attention(model.backbone, self.device != "cpu")
        return Mask2FormerLearner(model, self.config, self.batch, torch.device(self.device), getattr(torch, self.dtype))

    @cached_property
    def _start(self) -> dict[str, Any]:
        return copy.deepcopy(self.ours.network.state_dict())

    def step(self, backends: Mapping[str, str]) -> dict[str, float]:
        """A step of ours with these backends."""
        with chosen_backends(backends):
            return self.ours.step(self.batch, 0)

    def first_step(self, backends: Mapping[str, str]) -> Evidence:
        """A step of ours from the weights at the first call of this, before which no other step must be taken."""
        self.ours.network.load_state_dict(self._start)
        numbers = self.step(backends)
        numbers["loss without ancestors"] = (
            numbers["loss"] - self.config.loss.ancestor_weight * numbers["loss_ancestor"]
        )
        return Evidence(numbers, _BOUNDS[self.dtype])

    def first_peer_step(self) -> Evidence:
        """The first step of the peer."""
        return Evidence({"loss without ancestors": self.peer.step()["loss"]}, _PEER_BOUND)


def _workload(case: Case, plan: Plan) -> Workload:
    learners = _Learners(case, plan.device)
    items = case.shapes["images"][0]
    peer = Provider(
        "transformers",
        lambda: learners.peer.step,
        mask2former_obstacle(),
        plan.device,
        items,
        evidence=learners.first_peer_step,
    )
    replaced = [{name: backend} for name, backend in _REPLACED[plan.device].items()]
    return Workload(
        case,
        (peer, *(_provider(learners, backends, items) for backends in ({}, *replaced))),
        _difference,
        truth=lambda: learners.first_step(_REFERENCES),
        in_turns=True,
        memory=None if plan.quick else partial(process_memory, BENCHMARK, case, plan),
    )


def _provider(learners: _Learners, backends: Mapping[str, str], items: int) -> Provider:
    def prepare() -> Callable[[], dict[str, float]]:
        return partial(learners.step, backends)

    obstacle = variant_obstacle(backends, learners.device)
    return Provider(
        variant_name(backends),
        prepare,
        obstacle,
        learners.device,
        items,
        evidence=lambda: learners.first_step(backends),
    )


def _difference(found: Evidence, truth: Evidence) -> str:
    far = [
        f"{name} {value:.6g} and not {truth.numbers[name]:.6g}"
        for name, value in found.numbers.items()
        if not abs(value - truth.numbers[name]) <= found.bound * abs(truth.numbers[name])
    ]
    return f"off by more than {found.bound:g}: {', '.join(far)}" if far else ""


BENCHMARK = Benchmark("train", step_cases, _workload, _NOTE)
