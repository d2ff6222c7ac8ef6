"""One step of phase 3: the teacher labels a weak view, the student learns from these labels and from the initial ones, the teacher follows.

    loss = w_initial(t) * loss(student(crop), initial labels) + w_teacher(t) * loss(student(strong view of the crop), teacher's labels)
    teacher = decay * teacher + (1 - decay) * student

The student is a `Learner`, so a branch is what a step of phase 2 is; branches are taken one after the other, so a step needs no more memory
for gradients than one of phase 2. The teacher is asked without gradients, in eval mode. A photograph of which it accepts nothing keeps
its initial labels in both branches: to learn from it as empty would teach the student, and then the teacher, to find less and less.

Source: Cao et al. 2024, self-correction; weights of the branches as in HASSOD (Cao et al. 2023), where the teacher's branch has no
mask loss, and here has one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import torch

from sohes_cli.data.batch import WeakBatch, collate
from sohes_cli.data.jitter import full_crop
from sohes_cli.data.strong_view import strong_batch
from sohes_cli.errors import SohesError
from sohes_cli.model.config import STRIDE
from sohes_cli.model.files import MODEL_NAME
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.pretrain.networks import use_fused_attention
from sohes_cli.training.agreement import Agreement, compare_labels, likeness
from sohes_cli.training.learner import Branch, Learner
from sohes_cli.training.moving_average import relative_distance, update_teacher
from sohes_cli.training.pictures import draw_beside_labels, labels_of
from sohes_cli.training.schedules import cosine
from sohes_cli.training.teacher_labels import TeacherLabels, teacher_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from accelerate import Accelerator
    from numpy.typing import NDArray

    from sohes_cli.data.batch import Batch, Example
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.structures import LabelRecord
    from sohes_cli.training.correct_config import CorrectConfig

__all__ = ["STUDENT_NAME", "Correction"]

STUDENT_NAME = "student.safetensors"
_WINDOW = 20  # steps over which the teacher must accept nothing, or everything, to be told of
_EVERYTHING = 0.9  # of the queries
_ALIKE = 0.85  # mean IoU of the surest masks
_LEVEL = 1e-4  # deviation of the scores
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
        self._accepted: deque[tuple[float, float]] = deque(maxlen=_WINDOW)  # labels an image, and the share of queries that may be one

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
            batch: this process's part of it, with weak views.
            step: its number, from 0.
            diagnosed: also compare labels, and see that predictions have not collapsed.

        Returns:
            The losses of the whole step, over all processes, by branch; the numbers of the optimizer; and what the teacher did.

        Raises:
            SohesError: as `Learner.step_on` does, or if predictions have collapsed; parameters are then as they were.
        """
        with self.learner.explaining_memory():
            batch = batch.to(self.accelerator.device)
            labels = self._labels(batch)
            numbers = self._described(batch, labels, diagnosed)
        self._accepted.append((numbers["teacher_labels"], numbers["teacher_candidates"]))
        weights = self._weights(step)
        taught = strong_batch(_taught(batch, labels), self.config.views, self.config.run.seed)
        branches = [Branch("initial", replace(batch, weak=None), weights["initial"]), Branch("teacher", taught, weights["teacher"])]
        numbers |= self.learner.step_on([branch for branch in branches if branch.weight > 0], step, diagnosed)
        update_teacher(self.teacher, self.learner.network, self.config.teacher.ema_decay)
        if diagnosed:
            numbers["ema_distance"] = float(relative_distance(self.teacher, self.learner.network))
        return numbers | {f"weight_{name}": weight for name, weight in weights.items()}

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
                f"Nearly all of the teacher's {self.config.model.queries} masks have had the score of a label for {_WINDOW} steps, "
                "the wrong ones too. Raise --set teacher.score_small and teacher.score_large, or train phase 2 longer."
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
        """What the teacher says of the weak views, in the parts in which a step is taken."""
        found = []
        for part in batch.split(self.config.optimizer.accumulate):
            weak = _weak_of(part)
            output = self.learner.predict(weak.pixels, weak.sizes, self.teacher)
            found += teacher_labels(output, self.teacher.ancestor_head, weak, self.config)
        return found

    def _described(self, batch: Batch, labels: list[TeacherLabels], diagnosed: bool) -> dict[str, float]:
        """What the teacher did in a step, over all processes."""
        teacher, queries = self.config.teacher, self.config.model.queries
        sizes = [(found.areas > teacher.area_small).astype(int) + (found.areas > teacher.area_large) for found in labels]
        counts = [len(labels), sum(found.candidates for found in labels)]
        counts += [int(sum((found == i).sum() for found in sizes)) for i in range(len(_SIZES))]
        compared = Agreement(0, 0, 0, 0, 0.0)
        alike: tuple[float, float] = (0.0, 0.0)
        if diagnosed:
            each = (compare_labels(found.masks, initial) for found, initial in zip(labels, batch.masks, strict=True))
            compared = Agreement(*(sum(counts) for counts in zip(*each, strict=True)))
            alike = self._likeness(batch)
        images, candidates, *by_size, taught, new, initial, rejected, iou, masks, scores = self._summed([*counts, *compared, *alike])
        numbers = {"teacher_candidates": candidates / (images * queries), "teacher_labels": sum(by_size) / images}
        numbers |= {f"teacher_labels_{size}": found / images for size, found in zip(_SIZES, by_size, strict=True)}
        if diagnosed:
            _check_spread(masks / images, scores / images)
            numbers |= {
                "teacher_new": _share(new, taught),
                "teacher_iou": _share(iou, taught),
                "initial_rejected": _share(rejected, initial),
            }
            numbers |= {"mask_likeness": masks / images, "score_deviation": scores / images}
        return numbers

    def _likeness(self, batch: Batch) -> tuple[float, float]:
        """Sums over the photographs of how much the student's predictions are alike: those of the teacher follow late."""
        masks, scores = 0.0, 0.0
        for part in batch.split(self.config.optimizer.accumulate):
            weak = _weak_of(part)
            alike, deviation = likeness(self.learner.predict(weak.pixels, weak.sizes), weak.sizes)
            masks, scores = masks + float(alike.sum()), scores + float(deviation.sum())
        return masks, scores

    def _summed(self, values: Sequence[float]) -> list[float]:
        """The values added up over all processes."""
        mine = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return cast("list[float]", self.accelerator.reduce(mine, "sum").tolist())

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


def _taught(batch: Batch, labels: list[TeacherLabels]) -> Batch:
    """The batch with the teacher's labels, and the initial ones where it has none."""
    device = batch.pixels.device
    chosen = [(found.masks.to(device), found.parents) if len(found.masks) else None for found in labels]
    pairs = [pair or initial for pair, *initial in zip(chosen, batch.masks, batch.parents, strict=True)]
    return replace(batch, masks=tuple(masks for masks, _ in pairs), parents=tuple(parents for _, parents in pairs), weak=None)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _check_spread(masks: float, scores: float) -> None:
    """Raise a SohesError if predictions have collapsed."""
    if masks <= _ALIKE and scores >= _LEVEL:
        return
    what = f"masks are all alike (mean IoU {masks:.2f})" if masks > _ALIKE else f"scores are all alike (deviation {scores:.1g})"
    raise SohesError(
        f"The student has collapsed: its {what}.",
        "The newest checkpoint is from before. Begin anew with a lower --learning-rate, larger --set branches.initial or "
        "teacher.score_small and teacher.score_large, or a phase 2 that was trained longer.",
    )
