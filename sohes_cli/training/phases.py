"""The two phases of `sohes train`: what is trained in each, and what tells their runs apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    from sohes_cli.training.loop import Trainee

__all__ = ["CORRECT", "INSTRUCT", "PHASES", "Phase", "make_trainee", "phase_of"]

_INPUTS = {"labels": "labels_sha256", "initial weights": "start_sha256"}
_FREE = ("run.log_every", "run.checkpoint_every", "run.picture_every", "run.keep")
_FOLDERS = {"pictures": "step-*.jpg"}


@dataclass(frozen=True)
class Phase:
    """What a phase writes and shows.

    Args:
        kind: of its runs.
        config: the class of its settings.
        shown: numbers that are printed at the end.
    """

    kind: RunKind
    config: type[TrainConfig]
    shown: tuple[str, ...]


INSTRUCT = Phase(
    RunKind(
        "sohes train --phase instruct",
        "sohes-instruct",
        _INPUTS,
        _FREE,
        (MODEL_NAME, BEST_NAME),
        _FOLDERS,
        to_plain(TrainConfig()),
    ),
    TrainConfig,
    ("loss", "loss_validation", "ancestor_accuracy", "images_per_second"),
)
"""Phase 2: a model learns from the labels of phase 1."""

CORRECT = Phase(
    RunKind(
        "sohes train --phase correct",
        "sohes-correct",
        _INPUTS,
        _FREE,
        (MODEL_NAME, STUDENT_NAME, BEST_NAME),
        _FOLDERS,
        to_plain(CorrectConfig()),
    ),
    CorrectConfig,
    ("loss", "loss_validation", "teacher_labels", "teacher_new", "initial_rejected", "images_per_second"),
)
"""Phase 3: teacher and student go on from it."""

PHASES = {"instruct": INSTRUCT, "correct": CORRECT}


def phase_of(config: TrainConfig) -> Phase:
    """The phase that settings are of."""
    return CORRECT if isinstance(config, CorrectConfig) else INSTRUCT


def make_trainee(config: TrainConfig, device: str, init: Path | None) -> Trainee:
    """What is trained with these settings.

    Args:
        config: the settings.
        device: `cpu`, or `auto` for what Accelerate finds.
        init: the model to start from; see `Learner`.

    Raises:
        SohesError: see `Learner`.
    """
    return Correction(config, device, init) if isinstance(config, CorrectConfig) else Learner(config, device, init)
