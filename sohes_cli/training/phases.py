"""The two phases of `sohes train`: trained models, settings and run folders of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sohes_cli.model.files import BEST_NAME
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.settings import to_plain
from sohes_cli.training.config import TrainConfig
from sohes_cli.training.correct_config import CorrectConfig
from sohes_cli.training.correction import STUDENT_NAME, Correction
from sohes_cli.training.learner import Learner
from sohes_cli.training.run_folder import RunKind

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CORRECT", "INSTRUCT", "PHASES", "Phase", "Trainee", "make_trainee", "phase_of"]

Trainee: TypeAlias = Learner | Correction
"""Models and optimizer of a run of phase 2 or 3."""


@dataclass(frozen=True)
class Phase:
    """Runs, settings and output of a phase.

    Args:
        kind: properties of its runs.
        config: class of its settings.
        shown: names of the numbers that are printed at the end.
    """

    kind: RunKind
    config: type[TrainConfig]
    shown: tuple[str, ...]


def _phase(name: str, config: type[TrainConfig], outputs: tuple[str, ...], shown: tuple[str, ...]) -> Phase:
    kind = RunKind(
        f"sohes train --phase {name}",
        f"sohes-{name}",
        inputs={"labels": "labels_sha256", "initial weights": "start_sha256"},
        free=("run.log_every", "run.checkpoint_every", "run.picture_every", "run.keep"),
        outputs=(MODEL_NAME, *outputs, BEST_NAME),
        folders={"pictures": r"step-.*\.jpg"},
        defaults=to_plain(config()),
    )
    return Phase(kind, config, ("loss", "loss_validation", *shown, "images_per_second"))


INSTRUCT = _phase("instruct", TrainConfig, (), ("ancestor_accuracy",))
"""Phase 2: a model learns from the labels of phase 1."""

CORRECT = _phase("correct", CorrectConfig, (STUDENT_NAME,), ("teacher_labels", "teacher_new", "initial_rejected"))
"""Phase 3: a teacher and its student continue from the model of phase 2."""

PHASES = {"instruct": INSTRUCT, "correct": CORRECT}


def phase_of(config: TrainConfig) -> Phase:
    """Return the phase of settings."""
    return CORRECT if isinstance(config, CorrectConfig) else INSTRUCT


def make_trainee(config: TrainConfig, device: str, init: Path | None) -> Trainee:
    """Build the models and the optimizer of a run; see `Learner` for the arguments and the errors."""
    return Correction(config, device, init) if isinstance(config, CorrectConfig) else Learner(config, device, init)
