"""`Segmenter` on a photograph, from pixels to masks and their forest, beside the processor, network and post-processing
of transformers.

Weights are random, so which masks come out means nothing, but the work on them does: the threshold of the scores is
such that a hundred pass, as of a trained model, and only equal ones are dropped, for untrained queries are alike.
Checked first: masks are those of plain operations.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sohes_benchmarks.memory import process_memory
from sohes_benchmarks.rows import Case
from sohes_benchmarks.stages.backends import DTYPES, PRECISIONS, chosen_backends, variant_name, variant_obstacle
from sohes_benchmarks.stages.mask2former import Mask2FormerSegmenter, mask2former_obstacle
from sohes_benchmarks.workload import Benchmark, Provider, Workload
from sohes_cli.training.config import TRAIN_PRESETS, train_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from sohes_benchmarks.workload import Device, Plan
    from sohes_cli.inference.prediction import Prediction
    from sohes_cli.inference.segmenter import Segmenter
    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["BENCHMARK", "DEFAULT_CASES", "Found", "segment_case"]

_QUICK_SIDE, _CPU_SIDE = 96, 480
DEFAULT_CASES: dict[Device, tuple[tuple[str, int], ...]] = {
    "cpu": (("tiny", _CPU_SIDE), ("small", _CPU_SIDE)),
    "cuda": tuple((preset, side) for preset in TRAIN_PRESETS for side in (480, 1024)),
}
"""Presets and sides of photographs in pixels, by device."""

_MASKS = 100
_FEWEST = 0.9  # of the masks asked for: some may be equal or empty
_BOUNDS = {"float32": (0.99, 1e-3), "bfloat16": (0.9, 0.03)}  # see `Found`
_PEER_BOUNDS = (0.9, 0.03)  # it resizes photographs in another way, and masks twice
_REFERENCES: dict[Device, dict[str, str]] = {
    "cpu": {"deformable_attention": "reference", "attention": "plain"},
    "cuda": {"deformable_attention": "reference", "attention": "torch"},
}
_NOTE = (
    "Untrained weights; the least score is such that about as many masks pass as `masks` says, and "
    "near-duplicates are kept (nms_iou = 1). "
    "Loading is not counted. transformers' Mask2Former has our backbone (the ViT with its adapter), decoders "
    "equal to ours in width, depth "
    "and queries with the same weights, and its own processor and instance post-processing with one map a "
    "mask; it makes no forest."
)


class Found(NamedTuple):
    """The masks of a photograph, and how near they must be to the true ones.

    Args:
        masks: bool [N, H, W].
        scores: those of the masks, [N].
        bounds: the least mean over the true masks of the best IoU, and the largest difference of the scores.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float64]
    bounds: tuple[float, float] = (0.0, 0.0)


def segment_case(preset: str, device: Device, *, side: int) -> Case:
    """A case with the model of a preset of `sohes train` and a square photograph of the network's own size.

    Args:
        preset: `tiny`, `small` or `base`.
        device: decides the precision.
        side: in pixels, a multiple of the network's stride.
    """
    masks = min(_MASKS, train_config(preset).model.queries)
    return Case(
        "segment",
        f"{preset}, {side} px",
        "photograph",
        DTYPES[device],
        {"photograph": (side, side, 3), "masks": (masks,)},
    )


def _cases(plan: Plan) -> list[Case]:
    chosen = DEFAULT_CASES[plan.device]
    if plan.quick or plan.device == "cpu":  # the script of this stage has the others, which take minutes each there
        chosen = (("tiny", _QUICK_SIDE if plan.quick else _CPU_SIDE),)
    return [segment_case(preset, plan.device, side=side) for preset, side in chosen]


class _Segmenters:
    """Segmenters of a case, built on first use, each with its own threshold for
    the number of masks.

    Args:
        case: see `segment_case`.
        device: where they compute.
    """

    def __init__(self, case: Case, device: Device) -> None:
        self.case, self.device = case, device
        self.config = train_config(case.name.partition(",")[0], assignments=("model.weights=random",))
        self.photograph = _photograph(case.shapes["photograph"][0])

    @cached_property
    def ours(self) -> Segmenter:
        """Ours, for all backends."""
        from sohes_cli.inference.config import SegmentConfig
        from sohes_cli.inference.segmenter import Segmenter

        model = self._model()

        def segmenter(min_score: float) -> Segmenter:
            config = SegmentConfig(min_score=min_score, nms_iou=1.0)
            return Segmenter(
                model, len(self.photograph), config, device=self.device, precision=PRECISIONS[self.case.dtype]
            )

        return segmenter(self._threshold(segmenter(0.0)(self.photograph).scores))

    @cached_property
    def peer(self) -> Mask2FormerSegmenter:
        """The peer, with the same weights."""
        import torch

        from sohes_cli.vit.build import use_fused_attention

        device, dtype, model = torch.device(self.device), getattr(torch, self.case.dtype), self._model()
        use_fused_attention(model.backbone, True)
        made = Mask2FormerSegmenter(model, self.config.loss, len(self.photograph), device, dtype)
        made.min_score = self._threshold(made.scores(self.photograph))
        return made

    def _model(self) -> EntityModel:
        """The same weights at every call."""
        import torch

        from sohes_cli.model.segmentation_model import EntityModel

        torch.manual_seed(self.config.run.seed)
        return EntityModel(self.config.model)

    def _threshold(self, scores: NDArray[np.float64]) -> float:
        """A score that as many masks reach as the case asks for."""
        (masks,) = self.case.shapes["masks"]
        return max(
            0.0, float(np.sort(scores)[-min(masks, len(scores))]) - 1e-6
        )  # one program rounds scores to 6 digits

    def segment(self, backends: Mapping[str, str]) -> Prediction:
        """Segment with these backends."""
        with chosen_backends(backends):
            return self.ours(self.photograph)

    def found(self, backends: Mapping[str, str]) -> Found:
        """The same as evidence."""
        prediction = self.segment(backends)
        return Found(prediction.masks, prediction.scores, _BOUNDS[self.case.dtype])


def _photograph(side: int) -> NDArray[np.uint8]:
    """A sample photograph as a square, RGB uint8 [side, side, 3]."""
    import cv2
    from skimage import data

    photograph = data.astronaut()  # type: ignore[no-untyped-call] # skimage's
    return np.asarray(cv2.resize(photograph, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def _workload(case: Case, plan: Plan) -> Workload:
    segmenters = _Segmenters(case, plan.device)
    references = _REFERENCES[plan.device]
    peer = Provider(
        "transformers",
        lambda: partial(segmenters.peer, segmenters.photograph),
        mask2former_obstacle(),
        plan.device,
        evidence=lambda: Found(*segmenters.peer(segmenters.photograph), _PEER_BOUNDS),
    )
    variants = ({}, *({name: backend} for name, backend in references.items()))
    return Workload(
        case,
        (peer, *(_provider(segmenters, backends) for backends in variants)),
        _difference,
        truth=lambda: segmenters.found(references),
        in_turns=True,
        memory=None if plan.quick else partial(process_memory, BENCHMARK, case, plan),
    )


def _provider(segmenters: _Segmenters, backends: Mapping[str, str]) -> Provider:
    def prepare() -> Callable[[], Prediction]:
        segmenters.ours  # noqa: B018 (made before it is timed)
        return partial(segmenters.segment, backends)

    obstacle = variant_obstacle(backends, segmenters.device)
    return Provider(
        variant_name(backends), prepare, obstacle, segmenters.device, evidence=lambda: segmenters.found(backends)
    )


def _difference(found: Found, truth: Found) -> str:
    if len(found.masks) < _FEWEST * len(truth.masks):
        return f"{len(found.masks)} masks and not {len(truth.masks)}"
    least_iou, largest_error = found.bounds
    if (iou := _mean_best_iou(found.masks, truth.masks)) < least_iou:
        return f"a mean IoU of {iou:.3f} with the true masks, less than {least_iou:g}"
    scores, true_scores = (np.sort(one.scores)[-min(len(found.scores), len(truth.scores)) :] for one in (found, truth))
    if not (error := float(abs(scores - true_scores).max())) <= largest_error:
        return f"scores off by {error:.3f}, more than {largest_error:g}"
    return ""


def _mean_best_iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Mean over the true masks of the largest IoU with a mask that was found."""
    from sohes_kernels import mask_areas, mask_intersections

    from sohes_cli.masks.packed import PackedMasks

    ours, true = (PackedMasks.from_masks(masks).bits for masks in (found, truth))
    shared = mask_intersections(true, ours)
    unions = mask_areas(true)[:, None] + mask_areas(ours) - shared
    return float((shared / unions).max(1).mean())


BENCHMARK = Benchmark("segment", _cases, _workload, _NOTE)
