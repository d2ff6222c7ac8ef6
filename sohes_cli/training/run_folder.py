"""The folder of a training run: its origin, checkpoints, logs and results.

run.json        settings, inputs and versions; a second run continues only with the same
checkpoints/    step-NNNNNNNN.safetensors, the newest few
metrics.jsonl   losses, schedules and diagnostics; the same in tensorboard/

Further files, and the content of a checkpoint, belong to each command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.runs.folder import FolderMarker, differences, flattened, holds_files, refuse_file, remove_files
from sohes_cli.training.checkpoints import latest_checkpoint
from sohes_cli.training.metrics import BOARD_NAME, METRICS_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["RUN_NAME", "RunFolder", "RunKind", "changed_settings", "read_run"]

RUN_NAME = "run.json"
_CHECKPOINTS = "checkpoints"
_PACKAGES = ("sohes", "torch", "timm", "accelerate", "numpy", "opencv-python-headless", "pillow")
_SHOWN_SETTINGS = 5
_SHOWN_DIGITS = 12  # of a hash


@dataclass(frozen=True)
class RunKind:
    """Properties of the runs of one command.

    Args:
        command: the command, as in `sohes pretrain`, for messages.
        format: entry `format` of `run.json`.
        inputs: entry of `run.json` that identifies each input, by the input's noun in messages; these show the entry of
            the noun itself, such as a count, where it differs.
        free: settings (GROUP.NAME) without effect on the weights, which may change.
        outputs: names of result files beside the common ones, removed by `--overwrite`.
        folders: further folders by name, with a regular expression of their files.
        defaults: settings by group, from `to_plain`, for those that the run of an older version does not name.
    """

    command: str
    format: str
    inputs: Mapping[str, str]
    free: tuple[str, ...] = ("run.log_every", "run.checkpoint_every", "run.keep")
    outputs: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def marker(self) -> FolderMarker:
        """The marker file of these runs."""
        return FolderMarker(
            RUN_NAME,
            self.format,
            1,
            f"run of {self.command}",
            damaged="Mend it, choose another --out, or pass --overwrite.",
            foreign="Choose another --out, or the --phase that made it.",
        )

    def describe(
        self, config: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Any], *packages: str
    ) -> dict[str, Any]:
        """Return the content of `run.json`: format, inputs, settings and the versions of packages.

        Args:
            config: from `to_plain`, with `auto` resolved.
            inputs: entries that identify the inputs, ready for JSON.
            packages: whose versions matter beside those that all training needs.
        """
        versions = {name: version(name) for name in (*_PACKAGES, *packages)}
        return {**self.marker.head, **inputs, "config": config, "versions": versions}


@dataclass(frozen=True)
class RunFolder:
    """The files of one run below `path`; `description` is the content of `run.json`, from `RunKind.describe`."""

    path: Path
    kind: RunKind
    description: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / _CHECKPOINTS

    def begin(self, overwrite: bool = False) -> None:
        """Make the folder, or check that it holds the same run; the main process alone.

        A run without a checkpoint begins anew with any settings: its first try may have run out of memory.

        Args:
            overwrite: remove the files of an older run.

        Raises:
            UsageError: if the folder holds a run with other settings or inputs, or other files.
            StoreError: if it cannot be read or written.
        """
        refuse_file("--out", self.path, "Name a folder, which need not exist.")
        removed = overwrite and self._remove()
        there = read_run(self.path, self.kind)
        if there is not None and self.latest() is not None:
            self._require_same(there)
            return
        if there is None and not removed and holds_files(self.path):
            message = f"--out {self.path} holds other files, but no run of {self.kind.command}."
            raise UsageError(message, "Choose another folder or empty it.")
        self.kind.marker.write(self.path, self.description)

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return latest_checkpoint(self.checkpoints)

    def _require_same(self, there: dict[str, Any]) -> None:
        kind, now, nouns = self.kind, self.description, " and ".join(self.kind.inputs)
        hint = f"Give the same settings and {nouns} to continue it, another --out, or --overwrite to begin anew."
        changed = changed_settings(kind, there["config"], now["config"])
        if changed:
            shown = ", ".join(changed[:_SHOWN_SETTINGS])
            raise UsageError(f"--out {self.path} holds a run with other settings: {shown}.", hint)
        others = [_difference(noun, key, there, now) for noun, key in kind.inputs.items() if there.get(key) != now[key]]
        if others:
            raise UsageError(f"--out {self.path} holds a run on {' and '.join(others)}.", hint)

    def _remove(self) -> bool:
        """Remove the files that a run writes, and nothing else; return False if there is no run."""
        if _read(self.path, self.kind, damaged=True) is None:
            return False
        common = {_CHECKPOINTS: r"step-.*\.safetensors", BOARD_NAME: r"events\.out\.tfevents\..*"}
        for name, pattern in {**common, **self.kind.folders}.items():
            remove_files(self.path / name, pattern)
        remove_files(self.path, "|".join(map(re.escape, (*self.kind.outputs, METRICS_NAME))))
        (self.path / RUN_NAME).unlink()  # last, as it marks the others as files of a run
        return True


def read_run(path: Path, kind: RunKind) -> dict[str, Any] | None:
    """Read `run.json` of a folder; None without one.

    Raises:
        StoreError: if it cannot be read, is damaged, or is of another command.
    """
    return _read(path, kind)


def _read(path: Path, kind: RunKind, *, damaged: bool = False) -> dict[str, Any] | None:
    there = kind.marker.read(path, damaged=damaged)
    if there and not isinstance(there.get("config"), dict):
        raise StoreError(f"{path / RUN_NAME} is damaged: it has no settings.", kind.marker.foreign)
    return there


def changed_settings(kind: RunKind, there: Mapping[str, Any], now: Mapping[str, Any], *free: str) -> list[str]:
    """List the `differences` between the settings of a run and those of now, but for free ones (GROUP.NAME).

    A setting that the run does not name had its default; one that only the run names does not count.
    """
    before, wanted = flattened(kind.defaults) | flattened(there), flattened(now)
    names = [name for name in wanted if name not in (*kind.free, *free)]
    return differences({n: before[n] for n in names if n in before}, {n: wanted[n] for n in names})


def _difference(noun: str, key: str, there: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe how an input differs: in its entry for messages, or else in the first digits of its hash."""
    shown, digits = (noun, None) if there.get(noun) != now.get(noun) else (key, _SHOWN_DIGITS)
    before, after = (str(description.get(shown))[:digits] or "none" for description in (there, now))
    return f"other {noun} ({before} there, {after} now)"
