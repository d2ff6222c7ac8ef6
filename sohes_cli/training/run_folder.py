"""The folder of a run of training: what made it, its checkpoints, its logs and the files that come out.

run.json        settings, inputs and versions; a second run continues only with the same
checkpoints/    step-NNNNNNNN.safetensors, the newest few
metrics.jsonl   losses, schedules and diagnostics; the same in tensorboard/

What else is in it, and what a checkpoint holds, is the business of each command.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.runs.files import is_leftover, write_atomically
from sohes_cli.training.checkpoints import latest_checkpoint
from sohes_cli.training.metrics import BOARD_NAME, METRICS_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["RUN_NAME", "RunFolder", "RunKind", "is_run_of", "read_run"]

RUN_NAME = "run.json"
_FORMAT_VERSION = 1
_CHECKPOINTS = "checkpoints"
_PACKAGES = ("sohes", "torch", "timm", "accelerate", "numpy", "opencv-python-headless", "pillow")
_SHOWN_SETTINGS = 5
_SHOWN_DIGITS = 12  # of a hash


@dataclass(frozen=True)
class RunKind:
    """What tells the runs of one command from those of another.

    Args:
        command: that makes them, as in `sohes pretrain`, for messages.
        format: of their `run.json`.
        inputs: what they learn from, in a word for messages, and the entry of `run.json` that tells one from another; messages show the
            entry of the name of the word, such as a count, where it differs.
        free: settings (GROUP.NAME) that decide nothing of the weights and may change.
        outputs: names of files that they write beside the common ones, removed by `--overwrite`.
        folders: folders of such files, by name, with the pattern of those files.
        defaults: settings by group, as `to_plain` gives them: what the run of an older version did that does not name one yet.
    """

    command: str
    format: str
    inputs: Mapping[str, str]
    free: tuple[str, ...] = ("run.log_every", "run.checkpoint_every", "run.keep")
    outputs: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def describe(
        self, config: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Any], *packages: str
    ) -> dict[str, Any]:
        """The content of `run.json`: format, inputs, settings and the versions of packages.

        Args:
            config: from `to_plain`, with what `auto` turned out to mean.
            inputs: entries that tell the inputs, ready for JSON.
            packages: whose versions matter beside those that all training needs.
        """
        versions = {name: version(name) for name in (*_PACKAGES, *packages)}
        return {
            "format": self.format,
            "format_version": _FORMAT_VERSION,
            **inputs,
            "config": config,
            "versions": versions,
        }


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
        kind: what its command writes.
        description: what this run is: the content of `run.json`, from `RunKind.describe`.
    """

    path: Path
    kind: RunKind
    description: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / _CHECKPOINTS

    def begin(self, overwrite: bool = False) -> None:
        """Make the folder, or see that the run which is there is the same; the main process alone.

        A run without a checkpoint is begun anew, with whatever settings: the first try may have asked for too much memory.

        Args:
            overwrite: remove what an older run left.

        Raises:
            UsageError: if the folder holds a run with other settings or inputs, or other files.
            StoreError: if it cannot be read or written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out {self.path} is a file.", "Name a folder, which need not exist.")
        removed = overwrite and _remove_run(self.path, self.kind)
        there = read_run(self.path, self.kind)
        if there is not None and self.latest() is not None:
            _require_same(self.path, self.kind, there, self.description)
            return
        if there is None and not removed and _holds_files(self.path):
            raise UsageError(
                f"--out {self.path} holds other files, but no run of {self.kind.command}.",
                "Choose another folder or empty it.",
            )
        write_atomically(self.path / RUN_NAME, [json.dumps(self.description, indent=2).encode(), b"\n"])

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return latest_checkpoint(self.checkpoints)


def read_run(path: Path, kind: RunKind) -> dict[str, Any] | None:
    """What made the run in a folder: the content of its `run.json`, None if it has none.

    Raises:
        StoreError: if it cannot be read, is damaged, or is of another command.
    """
    return _read(path / RUN_NAME, kind)


def is_run_of(path: Path, kind: RunKind) -> bool:
    """Whether a folder holds a run of this kind; false if it holds none, or what it holds cannot be told."""
    try:
        there = json.loads((path / RUN_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(there, dict) and there.get("format") == kind.format


def _read(file: Path, kind: RunKind, to_remove: bool = False) -> dict[str, Any] | None:
    """As `read_run`, but nothing of a damaged one that is to be removed."""
    try:
        there = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{file} cannot be read: {error.strerror}.", "Make it readable, or choose another --out."
        ) from error
    except ValueError as error:
        if to_remove:
            return {}
        raise StoreError(
            f"{file} is damaged: {error}.", "Mend it, choose another --out, or pass --overwrite."
        ) from error
    known = (
        isinstance(there, dict)
        and there.get("format") == kind.format
        and there.get("format_version") == _FORMAT_VERSION
    )
    if not known or not isinstance(there.get("config"), dict):
        raise StoreError(
            f"{file} is not that of a run of {kind.command}.", "Choose another --out, or the --phase that made it."
        )
    return dict(there)


def _require_same(path: Path, kind: RunKind, there: dict[str, Any], now: dict[str, Any]) -> None:
    inputs = " and ".join(kind.inputs)
    hint = f"Give the same settings and {inputs} to continue it, another --out, or --overwrite to begin anew."
    before, wanted = _flat(kind.defaults) | _flat(there["config"]), _flat(now["config"])
    changed = [name for name in wanted if name not in kind.free and before.get(name) != wanted[name]]
    if changed:
        shown = ", ".join(
            f"{name} ({before.get(name)} there, {wanted[name]} now)" for name in changed[:_SHOWN_SETTINGS]
        )
        raise UsageError(f"--out {path} holds a run with other settings: {shown}.", hint)
    others = [_difference(word, key, there, now) for word, key in kind.inputs.items() if there.get(key) != now[key]]
    if others:
        raise UsageError(f"--out {path} holds a run on {' and '.join(others)}.", hint)


def _difference(word: str, key: str, there: dict[str, Any], now: dict[str, Any]) -> str:
    """How an input differs: in what people call it or how many there are, or else in the beginning of its hash."""
    shown, digits = (word, None) if there.get(word) != now.get(word) else (key, _SHOWN_DIGITS)
    before, after = (str(description.get(shown))[:digits] or "none" for description in (there, now))
    return f"other {word} ({before} there, {after} now)"


def _flat(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, values in config.items() for name, value in values.items()}


def _holds_files(path: Path) -> bool:
    return path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())


def _remove_run(path: Path, kind: RunKind) -> bool:
    """Remove the files that a run writes, and nothing else; whether there was a run."""
    if _read(path / RUN_NAME, kind, to_remove=True) is None:
        return False
    for name, pattern in {
        _CHECKPOINTS: "step-*.safetensors",
        BOARD_NAME: "events.out.tfevents.*",
        **kind.folders,
    }.items():
        folder = path / name
        _unlink(folder, pattern)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for name in (*kind.outputs, METRICS_NAME, RUN_NAME):  # what says that it is a run comes last
        _unlink(path, name)
    return True


def _unlink(folder: Path, pattern: str) -> None:
    """Delete the files of a pattern, and what a killed run left half written."""
    for file in list(folder.iterdir()) if folder.is_dir() else ():
        if fnmatch(file.name, pattern) or is_leftover(file.name):
            file.unlink()
