"""Inputs of `sohes train`: labels, their photographs and a model to start from; nothing here imports PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_cli.errors import UsageError

if TYPE_CHECKING:
    from sohes_cli.data.sources import LabeledPhotographs

__all__ = ["Sources"]

_DEFAULT_LABELS = Path("labels")
_DEFAULT_START = Path("runs/instruct")


@dataclass(frozen=True)
class Sources:
    """Inputs of a run.

    Args:
        labels: a label folder of `sohes explore` or a COCO annotation file; None for `./labels`.
        images: the folder of the photographs; None for the one that the label folder names.
        init: a model to start from; None for the weights of `model.weights`.
    """

    labels: Path | None = None
    images: Path | None = None
    init: Path | None = None

    def found_labels(self) -> Path:
        """Return the labels, which exist.

        Raises:
            UsageError: if they do not.
        """
        labels = self.labels or _DEFAULT_LABELS
        if not labels.exists():
            given = "" if self.labels else " (the default of --labels)"
            raise UsageError(
                f"There are no labels {labels}{given}.", "Make them with `sohes explore IMAGES --out labels`."
            )
        return labels

    def start(self) -> Path:
        """Return the model that phase 3 starts from, which exists; by default `./runs/instruct`.

        Raises:
            UsageError: if it does not.
        """
        init = self.init or _DEFAULT_START
        if not init.exists():
            given = "" if self.init else " (the default of --init)"
            raise UsageError(
                f"There is no model {init}{given} to correct.", "Train one with `sohes train --phase instruct`."
            )
        return init

    def open(self) -> LabeledPhotographs:
        """Open the photographs with their labels.

        Raises:
            SohesError: if there are none, or labels and photographs do not belong together.
        """
        from sohes_cli.data.sources import open_labeled

        return open_labeled(self.found_labels(), self.images)
