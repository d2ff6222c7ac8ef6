"""The folder of a pretraining run: what made it, its checkpoints, its logs and the backbone that comes out.

run.json              settings, photographs and versions; a second run continues only with the same
checkpoints/          step-NNNNNNNN.safetensors, the newest few
backbone.safetensors  the teacher's ViT after the newest checkpoint: what `sohes explore --backbone FOLDER` takes
metrics.jsonl         losses, schedules and diagnostics; the same in tensorboard/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sohes_cli.config import to_plain
from sohes_cli.errors import StoreError, UsageError
from sohes_cli.explore.distilled import BACKBONE_FORMAT, BACKBONE_NAME
from sohes_cli.labels.store import is_leftover, write_atomically
from sohes_cli.pretrain.photometric import IMAGENET_MEAN, IMAGENET_STD
from sohes_cli.training.checkpoints import checkpoint_path, latest_checkpoint, prune_checkpoints, write_tensors
from sohes_cli.training.metrics import BOARD_NAME, METRICS_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.sources import ImageSource
    from sohes_cli.pretrain.training import Pretraining

__all__ = ["RunFolder", "describe_run"]

RUN_NAME = "run.json"
RUN_FORMAT = "sohes-pretrain"
_CHECKPOINTS = "checkpoints"
_PACKAGES = ("sohes", "torch", "timm", "accelerate", "numpy", "opencv-python-headless", "pillow")
_FREE = ("run.log_every", "run.checkpoint_every", "run.keep")  # settings that decide nothing of the weights


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
        description: what this run is: the content of `run.json`, from `describe_run`.
    """

    path: Path
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
            UsageError: if the folder holds a run with other settings or other photographs, or other files.
            StoreError: if it cannot be read or written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out {self.path} is a file.", "Name a folder, which need not exist.")
        removed = overwrite and _remove_run(self.path)
        there = _read(self.path / RUN_NAME)
        if there is not None and self.latest() is not None:
            _require_same(self.path, there, self.description)
            return
        if there is None and not removed and _holds_files(self.path):
            raise UsageError(f"--out {self.path} holds other files, but no run of sohes pretrain.", "Choose another folder or empty it.")
        write_atomically(self.path / RUN_NAME, [json.dumps(self.description, indent=2).encode(), b"\n"])

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return latest_checkpoint(self.checkpoints)

    def save(self, training: Pretraining, step: int, failed: Iterable[str] = ()) -> None:
        """Write the backbone and a checkpoint after `step` steps; the main process alone.

        The checkpoint comes second: where there is one of the last step, the backbone is that of the last step, too.

        Args:
            training: what is saved.
            step: steps done.
            failed: messages of photographs that could not be read.

        Raises:
            StoreError: if the disk is full or not writable; older files stay.
        """
        self._write_backbone(training, step)
        training.save(checkpoint_path(self.checkpoints, step), step, failed)
        prune_checkpoints(self.checkpoints, training.config.run.keep)

    def _write_backbone(self, training: Pretraining, step: int) -> None:
        model = training.config.model
        write_tensors(
            self.path / BACKBONE_NAME,
            training.teacher.vit.state_dict(),
            {
                "format": BACKBONE_FORMAT,
                "name": model.name,
                "shape": model.shape,
                "mean": list(IMAGENET_MEAN),
                "std": list(IMAGENET_STD),
                "photographs": self.description["photographs"],
                "step": step,
                "steps": training.steps,
            },
        )


def describe_run(source: ImageSource, config: PretrainConfig, precision: str) -> dict[str, Any]:
    """The content of `run.json`."""
    settings = to_plain(config)
    settings["optimizer"]["precision"] = precision
    return {
        "format": RUN_FORMAT,
        "format_version": 1,
        "photographs": len(source),
        "photographs_sha256": source.sha256,
        "config": settings,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _read(file: Path, to_remove: bool = False) -> dict[str, Any] | None:
    """What a run's `run.json` says, None if there is none; nothing if it is damaged and to be removed."""
    try:
        there = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}.", "Make it readable, or choose another --out.") from error
    except ValueError as error:
        if to_remove:
            return {}
        raise StoreError(f"{file} is damaged: {error}.", "Mend it, choose another --out, or pass --overwrite.") from error
    known = isinstance(there, dict) and there.get("format") == RUN_FORMAT and there.get("format_version") == 1
    if not known or not isinstance(there.get("config"), dict):
        raise StoreError(f"{file} is not that of a run of sohes pretrain.", "Choose another --out.")
    return dict(there)


def _require_same(path: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    hint = "Give the same settings and photographs to continue it, another --out, or --overwrite to begin anew."
    before, wanted = _flat(there["config"]), _flat(now["config"])
    changed = [name for name in wanted if name not in _FREE and before.get(name) != wanted[name]]
    if changed:
        shown = ", ".join(f"{name} ({before.get(name)} there, {wanted[name]} now)" for name in changed[:5])
        raise UsageError(f"--out {path} holds a run with other settings: {shown}.", hint)
    if there["photographs_sha256"] != now["photographs_sha256"]:
        raise UsageError(f"--out {path} holds a run on other photographs ({there['photographs']} there, {now['photographs']} now).", hint)


def _flat(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, values in config.items() for name, value in values.items()}


def _holds_files(path: Path) -> bool:
    return path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())


def _remove_run(path: Path) -> bool:
    """Remove the files that a run writes, and nothing else; whether there was a run."""
    if _read(path / RUN_NAME, to_remove=True) is None:
        return False
    for name, pattern in ((_CHECKPOINTS, "step-*.safetensors"), (BOARD_NAME, "events.out.tfevents.*")):
        folder = path / name
        _unlink(folder, pattern)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for name in (BACKBONE_NAME, METRICS_NAME, RUN_NAME):  # what says that it is a run comes last
        _unlink(path, name)
    return True


def _unlink(folder: Path, pattern: str) -> None:
    """Delete the files of a pattern, and what a killed run left half written."""
    for file in list(folder.iterdir()) if folder.is_dir() else ():
        if fnmatch(file.name, pattern) or is_leftover(file.name):
            file.unlink()
