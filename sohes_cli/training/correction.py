"""One step of phase 3: the teacher labels a weak view, the student learns from these labels and from the initial ones, the teacher follows.

    loss = w_initial(t) * loss(student(crop), initial labels) + w_teacher(t) * loss(student(strong view of the crop), teacher's labels)
    teacher = decay * teacher + (1 - decay) * student

The student is a `Learner`, so a branch is what a step of phase 2 is; branches are taken one after the other, so a step needs no more memory
for gradients than one of phase 2. The teacher is asked without gradients, in eval mode. A view in which it accepts nothing keeps its
initial labels in both branches: to learn from it as empty would teach the student, and then the teacher, to find less and less. With
`teacher.keep_initial` the initial labels that it has not found stay beside those that it accepts.

Source: Cao et al. 2024, self-correction; weights of the branches as in HASSOD (Cao et al. 2023), where the teacher's branch has no
mask loss, and here has one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial
from math import isfinite
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
from sohes_cli.training.agreement import Agreement, Likeness, compare_labels, joined_forest, likeness, unfound_labels
from sohes_cli.training.distribution import together
from sohes_cli.training.learner import RETRY, Branch, Learner, advising
from sohes_cli.training.moving_average import relative_distance, update_teacher
from sohes_cli.training.pictures import draw_beside_labels, labels_of
from sohes_cli.training.schedules import cosine
from sohes_cli.training.teacher_labels import TeacherLabels, teacher_labels
from sohes_cli.vit.build import use_fused_attention

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from accelerate import Accelerator
    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.data.batch import Batch, Example
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.structures import LabelRecord
    from sohes_cli.training.correct_config import CorrectConfig

__all__ = ["STUDENT_NAME", "Correction"]

STUDENT_NAME = "student.safetensors"
_WINDOW = 20  # steps over which the teacher must accept nothing, or everything, to be told of
_EVERYTHING = 0.9  # of the queries
_COLLAPSES = 3  # diagnoses in a row; one alone may be due to the photographs
_ALIKE = 0.85  # mean IoU of the surest masks
_LEAST_DEVIATION = 1e-3  # of log-odds
_SIZES = ("small", "medium", "large")


class Correction:
    """Teacher and student of a run.

    Args:
        config: the settings.
        device: see `Learner`.
        init: the model that both start from.

    Attributes:
        learner: the student and its optimizer.
        teacher: its moving average, which the run is for.

    Raises:
        SohesError: as `Learner` does.
    """

    def __init__(self, config: CorrectConfig, device: str = "auto", init: Path | None = None) -> None:
        self.config = config
        self.learner = Learner(config, device, init)
        self.teacher = EntityModel(config.model).to(self.accelerator.device).eval().requires_grad_(requires_grad=False)
        self.teacher.load_state_dict(self.learner.network.state_dict())
        use_fused_attention(self.teacher.backbone, True)  # there is no backward pass
        self.learner.keep("teacher", self.teacher)
        self._collapses = 0  # diagnoses in a row
        self._accepted: deque[tuple[float, float]] = deque(
            maxlen=_WINDOW
        )  # labels an image, and the share of queries that may be one

    @property
    def accelerator(self) -> Accelerator:
        """The process group and the device."""
        return self.learner.accelerator

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return self.learner.precision

    @property
    def network(self) -> EntityModel:
        """The teacher, which the run is for."""
        return self.teacher

    @property
    def models(self) -> dict[str, EntityModel]:
        """Teacher and student by the names of their files."""
        return {MODEL_NAME: self.teacher, STUDENT_NAME: self.learner.network}

    @property
    def has_steady_loss(self) -> bool:
        """Whether the losses of different steps measure the same: weights and the teacher's labels change."""
        return False

    def step(self, batch: Batch, step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step, and let the teacher follow.

        Args:
            batch: this process's part of it, with weak views, on the CPU.
            step: its number, from 0.
            diagnosed: also compare labels, and see that predictions have not collapsed.

        Returns:
            The losses of the whole step, over all processes, by branch; the numbers of the optimizer; and what the teacher did.

        Raises:
            SohesError: as `Learner.step_on` does, or if predictions have collapsed; parameters are then as they were.
        """
        weights = self._weights(step)
        with self.learner.explaining_memory():
            branches, numbers = [Branch("initial", replace(batch, weak=None), weights["initial"])], dict[str, float]()
            if weights["teacher"] > 0 or diagnosed:
                labels = self._labels(batch)
                numbers = self._accepted_numbers(labels) | (self._diagnosis(batch, labels) if diagnosed else {})
                if weights["teacher"] > 0:
                    branches.append(Branch("teacher", self._taught(batch, labels), weights["teacher"]))
            numbers |= self.learner.step_on([branch for branch in branches if branch.weight > 0], step, diagnosed)
            if self.learner.has_moved:
                update_teacher(self.teacher, self.learner.network, self.config.ema_decay)
            if diagnosed:
                numbers["ema_distance"] = float(relative_distance(self.teacher, self.learner.network))
        return (
            numbers
            | {f"weight_{name}": weight for name, weight in weights.items()}
            | {"ema_decay": self.config.ema_decay}
        )

    def measure(self, batch: Batch) -> dict[str, float]:
        """The losses and ancestor accuracy of the teacher for a batch with its initial labels, of this process alone."""
        return self.learner.measure(batch, self.teacher)

    def draw(self, shown: ValidationExamples) -> NDArray[np.uint8] | None:
        """A picture of the teacher's labels of photographs beside the initial ones; None if none can be read."""
        return draw_beside_labels(shown, self._accepted_labels)

    def notes(self, numbers: Mapping[str, float]) -> list[str]:
        """What the user should know of the numbers of a step: the teacher has accepted nothing, or everything, for some time."""
        found = self.learner.notes(numbers)
        if len(self._accepted) < _WINDOW:
            return found
        if all(labels == 0 for labels, _ in self._accepted):
            found.append(
                f"The teacher has accepted no mask in {_WINDOW} steps, so the student learns from the initial labels alone. "
                "Lower --set teacher.score_small and teacher.score_large, or train phase 2 longer."
            )
        if fmean(share for _, share in self._accepted) > _EVERYTHING:
            found.append(
                f"Nearly all of the teacher's {self.config.model.queries} masks have had the score of a label for {_WINDOW} steps. If the "
                "pictures show wrong ones, raise --set teacher.score_small and teacher.score_large, or train phase 2 longer."
            )
        return found

    def save(self, path: Path, step: int, description: dict[str, Any], failed: Iterable[str] = ()) -> None:
        """See `Learner.save`; the teacher is saved with it."""
        self.learner.save(path, step, description, failed)

    def load(self, path: Path) -> dict[str, Any]:
        """See `Learner.load`; the teacher is loaded with it."""
        return self.learner.load(path)

    def _weights(self, step: int) -> dict[str, float]:
        """What the branches count at a step, along half a cosine from the first step to the last."""
        share = step / max(1, self.config.optimizer.steps - 1)
        (first, last), (taught_first, taught_last) = self.config.branches.initial, self.config.branches.teacher
        return {"initial": cosine(first, last, share), "teacher": cosine(taught_first, taught_last, share)}

    def _labels(self, batch: Batch) -> list[TeacherLabels]:
        """What the teacher says of the weak views, in the parts in which a step is taken; all processes fail together."""
        found = []
        for part in batch.split(self.config.optimizer.accumulate):
            weak = _weak_of(part)
            with advising(RETRY):
                found += together(self.accelerator, partial(self._labels_of, weak))
        return found

    def _labels_of(self, weak: WeakBatch) -> list[TeacherLabels]:
        output = self.learner.predict(
            weak.pixels.to(self.accelerator.device, non_blocking=True), weak.sizes, self.teacher
        )
        return teacher_labels(output, self.teacher.ancestor_head, weak, self.config)

    def _taught(self, batch: Batch, labels: list[TeacherLabels]) -> Batch:
        """The strong view with the teacher's labels, and the initial ones where none of the teacher's lies in view."""
        pairs = []
        for found, masks, parents in zip(labels, batch.masks, batch.parents, strict=True):
            pairs.append(self._joined(found, masks, parents) if len(found.masks) else (masks, parents))
        pixels = batch.pixels.to(self.accelerator.device, non_blocking=True)
        every_mask, every_parent = (tuple(pair[i] for pair in pairs) for i in (0, 1))
        taught = replace(batch, pixels=pixels, masks=every_mask, parents=every_parent, weak=None)
        return strong_batch(taught, self.config.views, self.config.run.seed)

    def _joined(self, found: TeacherLabels, initial: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's labels of a view and, if these are kept, the first of the initial ones that it has not found."""
        room = self.config.data.max_labels - len(found.masks) if self.config.teacher.keep_initial else 0
        if room == 0:
            return found.masks, found.parents
        kept = unfound_labels(found.masks, initial)[:room]
        forest = torch.from_numpy(prune_forest(parents.numpy(), kept.numpy()))
        return torch.cat([found.masks, initial[kept]]), joined_forest(
            (found.masks, found.parents), (initial[kept], forest)
        )

    def _accepted_numbers(self, labels: list[TeacherLabels]) -> dict[str, float]:
        """How many labels the teacher gives a photograph, by size, and of what score; over all processes."""
        teacher, queries = self.config.teacher, self.config.model.queries
        areas = np.concatenate([found.areas for found in labels])
        sizes = (areas > teacher.area_small).astype(int) + (areas > teacher.area_large)
        sums = {"photographs": float(len(labels)), "candidates": float(sum(found.candidates for found in labels))}
        sums |= {name: float((sizes == i).sum()) for i, name in enumerate(_SIZES)}
        sums["score"] = float(sum(found.scores.sum() for found in labels))
        sums = self._summed(sums)
        photographs, accepted = sums["photographs"], sum(sums[name] for name in _SIZES)
        self._accepted.append((accepted / photographs, sums["candidates"] / (photographs * queries)))
        numbers = {"teacher_labels": accepted / photographs} | {
            f"teacher_labels_{name}": sums[name] / photographs for name in _SIZES
        }
        return numbers | {"teacher_score": _share(sums["score"], accepted), "teacher_candidates": self._accepted[-1][1]}

    def _diagnosis(self, batch: Batch, labels: list[TeacherLabels]) -> dict[str, float]:
        """How the labels in the student's view agree with the initial ones, and how much predictions are alike; over all processes."""
        each = (compare_labels(found.masks, initial) for found, initial in zip(labels, batch.masks, strict=True))
        compared = Agreement(*(sum(counts) for counts in zip(*each, strict=True)))
        alike = self._likeness(batch)
        sums = self._summed(compared._asdict() | {f"alike_{name}": value for name, value in alike._asdict().items()})
        spread = {
            "mask_likeness": _share(sums["alike_iou"], sums["alike_pairs"]),
            "score_deviation": sums["alike_deviation"] / sums["alike_photographs"],
            "student_masks": sums["alike_masks"] / sums["alike_photographs"],
        }
        self._check_spread(spread, has_labels=sums["initial"] > 0)
        return {
            "teacher_new": _share(sums["new"], sums["teacher"]),
            "teacher_iou": _share(sums["iou"], sums["teacher"]),
            "initial_rejected": _share(sums["rejected"], sums["initial"]),
            **spread,
        }

    def _likeness(self, batch: Batch) -> Likeness:
        """How much the student's predictions of the weak views are alike: those of the teacher follow late."""
        found = []
        for part in batch.split(self.config.optimizer.accumulate):
            weak = _weak_of(part)
            output = self.learner.predict(weak.pixels.to(self.accelerator.device, non_blocking=True), weak.sizes)
            found.append(likeness(output, weak.sizes, [len(parents) for parents in part.parents]))
        return Likeness(*(sum(values) for values in zip(*found, strict=True)))

    def _check_spread(self, spread: Mapping[str, float], has_labels: bool) -> None:
        """Raise a SohesError if the student's predictions are not finite, or have collapsed at several diagnoses, one after the other."""
        alike, deviation, masks = spread["mask_likeness"], spread["score_deviation"], spread["student_masks"]
        what = ""
        if not isfinite(deviation):
            raise SohesError("The student's predictions are not finite.", RETRY)
        if masks == 0 and has_labels:
            what = "no query has a mask"
        elif alike > _ALIKE:
            what = f"its masks are all alike (mean IoU {alike:.2f}, above {_ALIKE})"
        elif deviation < _LEAST_DEVIATION and self.config.model.queries > 1:
            what = f"its scores are all alike (deviation {deviation:.1g}, below {_LEAST_DEVIATION:g})"
        self._collapses = self._collapses + 1 if what else 0
        if self._collapses == _COLLAPSES:
            raise SohesError(
                f"The student has collapsed: {what}.",
                "Checkpoints are kept, but the newest may be close to it. Begin anew, in another --out or with --overwrite, with a lower "
                "--learning-rate, larger --set branches.initial, or from a model that was trained longer.",
            )

    def _summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values added up over all processes."""
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(mine, "sum").tolist(), strict=True))

    def _accepted_labels(self, example: Example) -> LabelRecord:
        """The teacher's labels of a whole photograph."""
        batch = collate([example], STRIDE).to(self.accelerator.device)
        crop = full_crop(*batch.sizes[0], max(batch.sizes[0]))
        weak = WeakBatch(batch.pixels, batch.sizes, (crop,), (crop,))
        output = self.learner.predict(weak.pixels, weak.sizes, self.teacher)
        (found,) = teacher_labels(output, self.teacher.ancestor_head, weak, self.config)
        return labels_of(replace(example, masks=found.masks, parents=found.parents))


def _weak_of(batch: Batch) -> WeakBatch:
    if batch.weak is None:
        raise ValueError("a batch of phase 3 needs the teacher's views")
    return batch.weak


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
