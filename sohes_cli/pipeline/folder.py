"""The folder of a pipeline: where each stage writes, whether it has begun, and how all of it is removed.

labels/            masks of phase 1, a label folder
runs/instruct/     the run of phase 2
runs/correct/      the run of phase 3
evaluation/        images.txt, the photographs that the ground truth lists, and label folders of them: instruct/, correct/ and, if they
                   are not those of phase 1, explore/
pipeline.json      what is run, and what each stage took and came to
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.labels.manifest import open_store, read_manifest
from sohes_cli.labels.store import MANIFEST_NAME, visible_files
from sohes_cli.training.phases import PHASES
from sohes_cli.training.run_folder import RUN_NAME, RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.training.run_folder import RunKind

__all__ = ["PipelineFolder"]


@dataclass(frozen=True)
class PipelineFolder:
    """See the module.

    Args:
        path: the folder, which need not exist.
    """

    path: Path

    @property
    def labels(self) -> Path:
        """The label folder of phase 1."""
        return self.path / "labels"

    @property
    def record(self) -> Path:
        """`pipeline.json`."""
        return self.path / "pipeline.json"

    @property
    def image_list(self) -> Path:
        """The list of the photographs to evaluate on."""
        return self.path / "evaluation" / "images.txt"

    def run(self, phase: str) -> Path:
        """The run of `instruct` or `correct`."""
        return self.path / "runs" / phase

    def evaluated(self, phase: str) -> Path:
        """The labels of the photographs to evaluate on, as `explore`, `instruct` or `correct` finds them."""
        return self.path / "evaluation" / phase

    def relative(self, path: Path) -> str:
        """A path as `pipeline.json` records it, so that both can move together."""
        return os.path.relpath(path, self.path).replace(os.sep, "/")

    def has_begun(self, stage: str) -> bool:
        """Whether `explore`, `instruct` or `correct` has left what a later call goes on from, which only its own settings can."""
        if stage == "explore":
            return (self.labels / MANIFEST_NAME).is_file()
        return RunFolder(self.run(stage), PHASES[stage].kind, {}).latest() is not None

    def remove(self) -> None:
        """Remove what earlier pipelines left, and nothing else.

        Raises:
            UsageError: if there are labels or runs, but none that a pipeline made.
            StoreError: if a folder cannot be read, or holds what no stage wrote.
        """
        if not self.record.is_file():
            others = [path for path in (self.labels, *map(self.run, PHASES)) if path.exists()]
            if others:
                raise UsageError(
                    f"--overwrite: {self.path} holds {others[0].relative_to(self.path)}, but no pipeline.json, so no pipeline made it.",
                    "Choose another --out, or remove it yourself.",
                )
            return
        for root in (self.labels, *self._evaluated()):
            _require_only_labels(root)
        _remove_labels(self.labels)
        for phase in PHASES:
            _remove_run(self.run(phase), PHASES[phase].kind)
        self.remove_evaluation()
        self.record.unlink()  # what says that a pipeline made the others comes last
        _remove_if_empty(self.path / "runs")

    def remove_evaluation(self) -> None:
        """Remove the labels that were made for an evaluation; see `remove` for the errors."""
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


def _remove_run(path: Path, kind: RunKind) -> None:
    """Remove a run, if there is one; where other files stay, so does a `run.json`, without which no run could begin beside them."""
    if (path / RUN_NAME).is_file():
        RunFolder(path, kind, kind.describe({}, {})).begin(overwrite=True)
        if [entry.name for entry in path.iterdir()] == [RUN_NAME]:
            (path / RUN_NAME).unlink()
            _remove_if_empty(path)


def _remove_labels(root: Path) -> None:
    """Remove the records and the manifest of a label folder, if it is one."""
    if (root / MANIFEST_NAME).is_file():
        open_store(root, read_manifest(root), overwrite=True)
        (root / MANIFEST_NAME).unlink()
        _remove_if_empty(root)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not there, or holds files of another kind
        folder.rmdir()
