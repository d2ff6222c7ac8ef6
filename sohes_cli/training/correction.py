"""Optimizer steps of phase 3: a student learns from the initial labels and from pseudo-labels of its moving average.

    loss    = w_initial(t) * loss(student(crop), initial labels)
            + w_teacher(t) * loss(student(strong view of the crop), teacher's labels of the weak view)
    teacher = decay * teacher + (1 - decay) * student

The student is a `Learner`. Its branches run one after the other, so a step needs no more gradient memory than one of
phase 2. The teacher runs without gradients in eval mode. A view without accepted labels keeps its initial ones in both
branches: learned as empty it would teach student and teacher to find less and less. With `teacher.keep_initial`,
initial labels that the teacher does not match are added to its own.

Source: Cao et al. 2024, self-correction; branch weights as in HASSOD (Cao et al. 2023), whose teacher branch has no
mask loss; ours has.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from math import isfinite, nan
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sohes_cli.data.batch import WeakBatch, collate
from sohes_cli.data.jitter import full_crop
from sohes_cli.data.strong_view import strong_batch
from sohes_cli.data.targets import prune_forest
from sohes_cli.errors import SohesError
from sohes_cli.model.config import STRIDE
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.training.agreement import Agreement, Likeness, compare_labels, join_forests, likeness, unfound_labels
from sohes_cli.training.checkpoints import RESTART_HINT
from sohes_cli.training.learner import Branch, Learner
from sohes_cli.training.moving_average import relative_distance, update_teacher
from sohes_cli.training.pictures import draw_beside_labels, labels_of
from sohes_cli.training.schedules import cosine
from sohes_cli.training.teacher_labels import TeacherLabels, teacher_labels
from sohes_cli.vit.build import use_fused_attention

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.data.batch import Batch, Example
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.model.output import Output
    from sohes_cli.structures import LabelRecord
    from sohes_cli.training.correct_config import CorrectConfig

__all__ = ["STUDENT_NAME", "Correction"]

STUDENT_NAME = "student.safetensors"
_WINDOW = 20  # steps in which the teacher accepts no mask, or nearly all, before the user is warned
_MAX_ACCEPTED = 0.9  # of the queries
_COLLAPSES = 3  # consecutive diagnoses; a single one may be due to the photographs
_MAX_IOU = 0.85  # mean IoU of the top-scoring masks
_MIN_DEVIATION = 1e-3  # of the log-odds
_SIZES = ("small", "medium", "large")


class Correction:
    """Teacher and student of a run.

    Args:
        config: the settings.
        device: see `Learner`.
        init: the initial model of both.

    Attributes:
        learner: the student and its optimizer.
        teacher: moving average of the student, and the result of the run.
        network: the teacher.
        models: teacher and student by file name.
        accelerator: the process group and the device.
        precision: `fp32`, `bf16` or `fp16`.
        has_steady_loss: False: losses of different steps differ in branch weights and labels.

    Raises:
        SohesError: see `Learner`.
    """

    has_steady_loss = False

    def __init__(self, config: CorrectConfig, device: str = "auto", init: Path | None = None) -> None:
        self.config = config
        self.learner = Learner(config, device, init)
        self.accelerator, self.precision = self.learner.accelerator, self.learner.precision
        self.teacher = EntityModel(config.model).to(self.accelerator.device).eval().requires_grad_(requires_grad=False)
        self.teacher.load_state_dict(self.learner.network.state_dict())
        use_fused_attention(self.teacher.backbone, True)  # there is no backward pass
        self.learner.keep("teacher", self.teacher)
        self.network, self.models = self.teacher, {MODEL_NAME: self.teacher, STUDENT_NAME: self.learner.network}
        self._collapses = 0  # consecutive diagnoses
        self._accepted: deque[tuple[float, float]] = deque(
            maxlen=_WINDOW
        )  # labels an image, share of candidate queries

    def step(self, batch: Batch, step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step of the student and one update of the teacher.

        Args:
            batch: this process's part, with weak views, on the CPU.
            step: from 0.
            diagnosed: also compare labels and check predictions for collapse.

        Returns:
            Losses of the whole step over all processes, by branch; optimizer metrics; teacher metrics.

        Raises:
            SohesError: as `Learner.step_on`, or if predictions have collapsed; the parameters are unchanged.
        """
        weights = self._weights(step)
        with self.learner.explain_out_of_memory():
            branches, numbers = [Branch("initial", replace(batch, weak=None), weights["initial"])], dict[str, float]()
            if weights["teacher"] > 0 or diagnosed:
                labels = self._label(batch)
                numbers = self._acceptance(labels) | (self._diagnose(batch, labels) if diagnosed else {})
                if weights["teacher"] > 0:
                    branches.append(Branch("teacher", self._strong_batch(batch, labels), weights["teacher"]))
            numbers |= self.learner.step_on([branch for branch in branches if branch.weight > 0], step, diagnosed)
            if self.learner.has_moved:
                update_teacher(self.teacher, self.learner.network, self.config.ema_decay)
            if diagnosed:
                numbers["ema_distance"] = float(relative_distance(self.teacher, self.learner.network))
        numbers |= {f"weight_{name}": weight for name, weight in weights.items()}
        return numbers | {"ema_decay": self.config.ema_decay}

    def measure(self, batch: Batch) -> dict[str, float]:
        """Compute losses and ancestor accuracy of the teacher on the initial labels of a batch, in this process."""
        return self.learner.measure(batch, self.teacher)

    def draw(self, shown: ValidationExamples) -> NDArray[np.uint8] | None:
        """Draw the teacher's labels beside the initial labels of photographs; None if none can be read."""
        return draw_beside_labels(shown, self._label_example)

    def notes(self, numbers: Mapping[str, float]) -> list[str]:
        """List warnings for the user: those of `Learner.notes`, and a teacher that accepts no mask or nearly all."""
        found = self.learner.notes(numbers)
        if len(self._accepted) < _WINDOW:
            return found
        if all(labels == 0 for labels, _ in self._accepted):
            found.append(
                f"The teacher has accepted no mask in {_WINDOW} steps, so the student learns from the initial labels "
                "alone. Lower --set teacher.score_small and teacher.score_large, or train phase 2 longer."
            )
        if fmean(share for _, share in self._accepted) > _MAX_ACCEPTED:
            found.append(
                f"Nearly all of the teacher's {self.config.model.queries} masks have had the score of a label for "
                f"{_WINDOW} steps. If the pictures show wrong ones, raise --set teacher.score_small and "
                "teacher.score_large, or train phase 2 longer."
            )
        return found

    def save(self, path: Path, step: int, description: dict[str, Any], failed: Iterable[str] = ()) -> None:
        """Write student and teacher; see `Learner.save`."""
        self.learner.save(path, step, description, failed)

    def load(self, path: Path) -> dict[str, Any]:
        """Restore student and teacher; see `Learner.load`."""
        return self.learner.load(path)

    def _weights(self, step: int) -> dict[str, float]:
        """Compute the weights of the branches: half a cosine from the first step to the last."""
        progress = step / max(1, self.config.optimizer.steps - 1)
        (start, end), (teacher_start, teacher_end) = self.config.branches.initial, self.config.branches.teacher
        return {"initial": cosine(start, end, progress), "teacher": cosine(teacher_start, teacher_end, progress)}

    def _label(self, batch: Batch) -> list[TeacherLabels]:
        """Label the weak views, in the parts of the step; processes fail together."""
        labels = []
        for part in batch.split(self.config.optimizer.accumulate):
            labels += self.learner.together(partial(self._label_views, _weak_views(part)))
        return labels

    def _label_views(self, weak: WeakBatch) -> list[TeacherLabels]:
        return teacher_labels(self._predict(weak, self.teacher), self.teacher.ancestor_head, weak, self.config)

    def _label_example(self, example: Example) -> LabelRecord:
        """Label a whole photograph."""
        batch = collate([example], STRIDE)
        crop = full_crop(*batch.sizes[0], max(batch.sizes[0]))
        (labels,) = self._label_views(WeakBatch(batch.pixels, batch.sizes, (crop,), (crop,)))
        return labels_of(replace(example, masks=labels.masks, parents=labels.parents))

    def _predict(self, weak: WeakBatch, network: EntityModel) -> Output:
        pixels = weak.pixels.to(self.accelerator.device, non_blocking=True)
        return self.learner.predict(pixels, weak.sizes, network)

    def _strong_batch(self, batch: Batch, labels: list[TeacherLabels]) -> Batch:
        """Make the strong view with the teacher's labels, or the initial ones of images where it has none in view."""
        pairs = [
            self._join(own, masks, parents) if len(own.masks) else (masks, parents)
            for own, masks, parents in zip(labels, batch.masks, batch.parents, strict=True)
        ]
        masks, parents = zip(*pairs, strict=True)
        pixels = batch.pixels.to(self.accelerator.device, non_blocking=True)
        strong = replace(batch, pixels=pixels, masks=masks, parents=parents, weak=None)
        return strong_batch(strong, self.config.views, self.config.run.seed)

    def _join(self, labels: TeacherLabels, initial: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Join the teacher's labels of an image and, with `keep_initial`, unmatched initial ones up to `max_labels`."""
        room = self.config.data.max_labels - len(labels.masks) if self.config.teacher.keep_initial else 0
        if room == 0:
            return labels.masks, labels.parents
        kept = unfound_labels(labels.masks, initial)[:room]
        kept_parents = torch.from_numpy(prune_forest(parents.numpy(), kept.numpy()))
        joined = join_forests((labels.masks, labels.parents), (initial[kept], kept_parents))
        return torch.cat([labels.masks, initial[kept]]), joined

    def _acceptance(self, labels: list[TeacherLabels]) -> dict[str, float]:
        """Compute the teacher's labels per image, by size, and their mean score, over all processes."""
        teacher, queries = self.config.teacher, self.config.model.queries
        areas = np.concatenate([own.areas for own in labels])
        sizes = (areas > teacher.area_small).astype(int) + (areas > teacher.area_large)
        sums = {"photographs": float(len(labels)), "candidates": float(sum(own.candidates for own in labels))}
        sums |= {name: float((sizes == i).sum()) for i, name in enumerate(_SIZES)}
        sums = self._sum(sums | {"score": float(sum(own.scores.sum() for own in labels))})
        images, accepted = sums["photographs"], sum(sums[name] for name in _SIZES)
        self._accepted.append((accepted / images, sums["candidates"] / (images * queries)))
        return {
            "teacher_labels": accepted / images,
            **{f"teacher_labels_{name}": sums[name] / images for name in _SIZES},
            "teacher_score": _ratio(sums["score"], accepted),
            "teacher_candidates": self._accepted[-1][1],
        }

    def _diagnose(self, batch: Batch, labels: list[TeacherLabels]) -> dict[str, float]:
        """Compare the teacher's labels with the initial ones and check predictions for collapse, over all processes."""
        compared = (compare_labels(own.masks, initial) for own, initial in zip(labels, batch.masks, strict=True))
        agreement = Agreement(*(sum(counts) for counts in zip(*compared, strict=True)))
        alike = self._likeness(batch)
        sums = self._sum(agreement._asdict() | {f"alike_{name}": value for name, value in alike._asdict().items()})
        spread = {
            "mask_likeness": _ratio(sums["alike_iou"], sums["alike_pairs"]),
            "score_deviation": sums["alike_deviation"] / sums["alike_photographs"],
            "student_masks": sums["alike_masks"] / sums["alike_photographs"],
        }
        self._check_collapse(spread, has_labels=sums["initial"] > 0)
        return {
            "teacher_new": _ratio(sums["new"], sums["teacher"]),
            "teacher_iou": _ratio(sums["iou"], sums["teacher"]),
            "initial_rejected": _ratio(sums["rejected"], sums["initial"]),
            **spread,
        }

    def _likeness(self, batch: Batch) -> Likeness:
        """Measure the student's predictions of the weak views, which collapse before the teacher's."""
        measured = []
        for part in batch.split(self.config.optimizer.accumulate):
            weak = _weak_views(part)
            output = self._predict(weak, self.learner.network)
            measured.append(likeness(output, weak.sizes, [len(parents) for parents in part.parents]))
        return Likeness(*(sum(values) for values in zip(*measured, strict=True)))

    def _check_collapse(self, spread: Mapping[str, float], has_labels: bool) -> None:
        """Raise a SohesError if the predictions are not finite, or have collapsed in consecutive diagnoses."""
        iou, deviation, masks = spread["mask_likeness"], spread["score_deviation"], spread["student_masks"]
        if not isfinite(deviation):
            raise SohesError("The student's predictions are not finite.", RESTART_HINT)
        reason = ""
        if masks == 0 and has_labels:
            reason = "no query has a mask"
        elif iou > _MAX_IOU:
            reason = f"its masks are all alike (mean IoU {iou:.2f}, above {_MAX_IOU})"
        elif deviation < _MIN_DEVIATION and self.config.model.queries > 1:
            reason = f"its scores are all alike (deviation {deviation:.1g}, below {_MIN_DEVIATION:g})"
        self._collapses = self._collapses + 1 if reason else 0
        if self._collapses == _COLLAPSES:
            raise SohesError(
                f"The student has collapsed: {reason}.",
                "Checkpoints are kept, but the newest may be close to it. Begin anew, in another --out or with "
                "--overwrite, with a lower --learning-rate, larger --set branches.initial, or from a model that was "
                "trained longer.",
            )

    def _sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum values over all processes."""
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(own, "sum").tolist(), strict=True))


def _weak_views(batch: Batch) -> WeakBatch:
    if batch.weak is None:
        raise ValueError("a batch of phase 3 needs the teacher's views")
    return batch.weak


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan
