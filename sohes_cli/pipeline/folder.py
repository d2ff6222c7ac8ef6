"""The folder of a pipeline: paths and state of its stages, and removal of all that they wrote.

labels/            masks of phase 1, a label folder
runs/instruct/     the run of phase 2
runs/correct/      the run of phase 3
evaluation/        images.txt, the photographs that the ground truth lists, and their label folders instruct/, correct/
                   and, if they are not those of phase 1, explore/
pipeline.json      settings, duration and result of each stage
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.labels.manifest import open_store, read_manifest
from sohes_cli.labels.store import MANIFEST_NAME, visible_files
from sohes_cli.pipeline.record import PIPELINE_NAME
from sohes_cli.training.phases import PHASES
from sohes_cli.training.run_folder import RUN_NAME, RunFolder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PipelineFolder"]


@dataclass(frozen=True)
class PipelineFolder:
    """Paths of a pipeline below `path`, which need not exist."""

    path: Path

    @property
    def labels(self) -> Path:
        """The label folder of phase 1."""
        return self.path / "labels"

    @property
    def image_list(self) -> Path:
        """The list of the photographs to evaluate on."""
        return self.path / "evaluation" / "images.txt"

    def run(self, phase: str) -> Path:
        """Return the run of `instruct` or `correct`."""
        return self.path / "runs" / phase

    def evaluated(self, phase: str) -> Path:
        """Return the label folder of `explore`, `instruct` or `correct` on the photographs to evaluate on."""
        return self.path / "evaluation" / phase

    def relative(self, path: Path) -> str:
        """Return a path as in `pipeline.json`: relative to the folder, so that both can move together."""
        return os.path.relpath(path, self.path).replace(os.sep, "/")

    def has_begun(self, stage: str) -> bool:
        """Return True if `explore`, `instruct` or `correct` left a state, which only its own settings can continue."""
        if stage == "explore":
            return (self.labels / MANIFEST_NAME).is_file()
        return RunFolder(self.run(stage), PHASES[stage].kind, {}).latest() is not None

    def remove(self) -> None:
        """Remove all that earlier pipelines wrote, and nothing else.

        Raises:
            UsageError: if there are labels or runs, but none of a pipeline.
            StoreError: if a folder cannot be read, or holds files that no stage wrote.
        """
        if not (self.path / PIPELINE_NAME).is_file():
            others = [path for path in (self.labels, *map(self.run, PHASES)) if path.exists()]
            if others:
                name = others[0].relative_to(self.path)
                message = f"--overwrite: {self.path} holds {name}, but no {PIPELINE_NAME}, so no pipeline made it."
                raise UsageError(message, "Choose another --out, or remove it yourself.")
            return
        for root in (self.labels, *self._evaluated()):
            _require_only_labels(root)
        _remove_labels(self.labels)
        for phase in PHASES:
            _remove_run(self.run(phase), phase)
        self.remove_evaluation()
        (self.path / PIPELINE_NAME).unlink()  # last, as it marks the others as files of a pipeline
        _remove_if_empty(self.path / "runs")

    def remove_evaluation(self) -> None:
        """Remove the labels of an evaluation; see `remove` for the errors."""
        for root in self._evaluated():
            _require_only_labels(root)
            _remove_labels(root)
        self.image_list.unlink(missing_ok=True)
        _remove_if_empty(self.image_list.parent)

    def _evaluated(self) -> list[Path]:
        return [self.evaluated(phase) for phase in ("explore", *PHASES)]


def _require_only_labels(root: Path) -> None:
    """Refuse a label folder with other files, which would be in the way of new labels and are not ours to remove."""
    other = next((name for name in visible_files(root) if not name.endswith(".json")), None) if root.is_dir() else None
    if other is not None:
        raise StoreError(
            f"{root} holds {other}, which no pipeline wrote; nothing was removed.", "Move it, or choose another --out."
        )


def _remove_run(path: Path, phase: str) -> None:
    """Remove a run; a new `run.json` stays beside other files, since no run could begin there without one."""
    if (path / RUN_NAME).is_file():
        kind = PHASES[phase].kind
        RunFolder(path, kind, kind.describe({}, {})).begin(overwrite=True)
        if [entry.name for entry in path.iterdir()] == [RUN_NAME]:
            (path / RUN_NAME).unlink()
            _remove_if_empty(path)


def _remove_labels(root: Path) -> None:
    """Remove the records and the manifest of a label folder."""
    if (root / MANIFEST_NAME).is_file():
        open_store(root, read_manifest(root), overwrite=True)
        (root / MANIFEST_NAME).unlink()
        _remove_if_empty(root)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it is missing, or holds files of another kind
        folder.rmdir()
