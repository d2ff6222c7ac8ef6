"""`pipeline.json`: what a pipeline runs, and what each of its stages took and came to, over all calls that worked on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import StoreError
from sohes_cli.runs.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["STAGES", "PipelineRecord", "StageRecord"]

STAGES = ("explore", "instruct", "correct", "evaluate")
"""The stages in their order; the last one only with a ground truth."""

_FORMAT = "sohes-pipeline"
_FORMAT_VERSION = 1


@dataclass
class StageRecord:
    """What is known of a stage.

    Args:
        settings: what decides its results, ready for JSON.
        finished: whether it is done.
        seconds: that it took, summed over all calls.
        numbers: what came of it.
        failed: messages of what could not be read, labeled or scored, each once.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    seconds: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def begin_anew(self, settings: dict[str, Any]) -> None:
        """Forget what is known, for other settings."""
        self.settings, self.finished, self.seconds, self.numbers, self.failed = settings, False, 0.0, {}, []

    def summary(self) -> dict[str, Any]:
        """All but the settings, for other programs."""
        return {
            "finished": self.finished,
            "seconds": round(self.seconds, 3),
            "numbers": self.numbers,
            "failed": self.failed,
        }


@dataclass
class PipelineRecord:
    """What is known of a pipeline.

    Args:
        images: the image folder, relative to the pipeline's.
        stages: what is known of each stage.
        scores: of each phase, as `sohes evaluate --json` gives them.
    """

    images: str = ""
    stages: dict[str, StageRecord] = field(default_factory=lambda: {stage: StageRecord() for stage in STAGES})
    scores: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> PipelineRecord | None:
        """What an earlier call wrote; None if there is no such file.

        Raises:
            StoreError: if it cannot be read, is damaged, or is of another kind.
        """
        try:
            there = json.loads(path.read_bytes())
            if there["format"] != _FORMAT or there["format_version"] != _FORMAT_VERSION:
                raise StoreError(f"{path} is of another kind or version.", "Choose another --out.")
            stages = {stage: StageRecord(**there["stages"][stage]) for stage in STAGES}
            return cls(str(there["images"]), stages, dict(there["scores"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(
                f"{path} cannot be read: {error.strerror}.", "Make it readable, or choose another --out."
            ) from error
        except (ValueError, TypeError, LookupError) as error:
            hint = "Choose another --out; or, if it was, delete it: the same command continues, and only earlier times are lost."
            raise StoreError(f"{path} is damaged, or was not written by a pipeline ({error!r}).", hint) from error

    def write(self, path: Path) -> None:
        """Write it, atomically.

        Raises:
            StoreError: if the disk is full or not writable.
        """
        content = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **asdict(self)}
        write_atomically(path, [json.dumps(content, indent=2).encode(), b"\n"])
