"""Metrics of a run: one JSON object a line, and the same for TensorBoard, both truncated when a run resumes."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from sohes_cli.errors import StoreError
from sohes_cli.runs.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from tensorboardX import SummaryWriter

__all__ = ["BOARD_NAME", "METRICS_NAME", "MetricsLog", "read_metrics"]

METRICS_NAME = "metrics.jsonl"
BOARD_NAME = "tensorboard"


class MetricsLog:
    """Writer of `metrics.jsonl` and the folder `tensorboard` of a run.

    Args:
        folder: of the run.
        step: at which the run starts; lines of later steps are removed, because these steps are repeated.

    Raises:
        StoreError: if the disk is full or not writable.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._path = folder / METRICS_NAME
        kept = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= step]
        write_atomically(self._path, [line.encode() for line in kept])
        with self._storing():
            self._file = self._path.open("ab", buffering=0)  # writes whole lines, and closing cannot fail
            self._board: SummaryWriter = SummaryWriter(str(folder / BOARD_NAME), purge_step=step + 1)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the metrics of a step; a number that is not finite is null in JSON and left out of TensorBoard.

        Raises:
            StoreError: if the disk is full or not writable.
        """
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        line: dict[str, Any] = {"step": step} | {name: finite.get(name) for name in numbers}
        with self._storing():
            self._file.write(json.dumps(line).encode() + b"\n")
        for name, value in finite.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Write a picture of a step to TensorBoard, RGB uint8 [H, W, 3]."""
        self._board.add_image(name, pixels, step, dataformats="HWC")

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "Free space, or choose a folder that you may write to; the same command continues."
            raise StoreError(f"{self._path} cannot be written: {error.strerror or error}.", hint) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`, none if it is missing; lines damaged by a crash are left out."""
    path, lines = folder / METRICS_NAME, []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
