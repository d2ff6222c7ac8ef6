"""`pipeline.json`: settings, duration and result of each stage of a pipeline, over all calls that worked on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import StoreError
from sohes_cli.runs.folder import FolderMarker

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PIPELINE_NAME", "STAGES", "PipelineRecord", "StageRecord"]

PIPELINE_NAME = "pipeline.json"
STAGES = ("explore", "instruct", "correct", "evaluate")
"""The stages in their order; the last one only with a ground truth."""

_DAMAGED = (
    "Choose another --out; or, if it was, delete it: the same command continues, and only earlier times are lost."
)
_MARKER = FolderMarker(PIPELINE_NAME, "sohes-pipeline", 1, "pipeline", damaged=_DAMAGED)


@dataclass
class StageRecord:
    """Settings and results of a stage.

    Args:
        settings: all that decides its results, ready for JSON.
        finished: True if it is done.
        seconds: duration over all calls.
        numbers: results.
        failed: messages of photographs and labels that failed, each once.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    seconds: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def begin_anew(self, settings: dict[str, Any]) -> None:
        """Reset the record, for other settings."""
        self.settings, self.finished, self.seconds, self.numbers, self.failed = settings, False, 0.0, {}, []

    def summary(self) -> dict[str, Any]:
        """Return all but the settings, for other programs."""
        return {
            "finished": self.finished,
            "seconds": round(self.seconds, 3),
            "numbers": self.numbers,
            "failed": self.failed,
        }


@dataclass
class PipelineRecord:
    """Content of `pipeline.json`.

    Args:
        images: the image folder, relative to the pipeline's.
        stages: record of each stage.
        scores: of each phase, as in `sohes evaluate --json`.
    """

    images: str = ""
    stages: dict[str, StageRecord] = field(default_factory=lambda: {stage: StageRecord() for stage in STAGES})
    scores: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> PipelineRecord | None:
        """Read the record of an earlier call; None without one.

        Raises:
            StoreError: if it cannot be read, is damaged, or is of another kind.
        """
        there = _MARKER.read(folder)
        if there is None:
            return None
        try:
            stages = {stage: StageRecord(**there["stages"][stage]) for stage in STAGES}
            return cls(str(there["images"]), stages, dict(there["scores"]))
        except (ValueError, TypeError, LookupError) as error:
            raise StoreError(f"{folder / PIPELINE_NAME} is damaged: {error!r}.", _DAMAGED) from error

    def write(self, folder: Path) -> None:
        """Write it atomically; StoreError if the disk is full or not writable."""
        _MARKER.write(folder, _MARKER.head | asdict(self))
