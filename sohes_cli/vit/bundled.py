"""Weights files inside the package: their paths and SHA-256.

This version has none: on two CPU cores no trained weights beat the training-free choices on photographs that played no
part in choosing settings. A backbone of 74 minutes is no clear gain over `color-texture`
(`benchmarks/results/backbone_quality.json`); a model of 160 minutes finds less than phase 1, whose labels it learned
(`benchmarks/results/model_scores.json`). `python -m sohes_benchmarks.bundle RUN` installs a backbone or a model here,
in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sohes_cli.errors import UsageError, WeightsError

__all__ = ["BACKBONE", "BUNDLED", "MODEL", "BundledFile"]

BUNDLED = "bundled"
"""Keyword for the package's weights, in place of a run or a file."""

_FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class BundledFile:
    """A weights file of the package.

    Args:
        path: location of the file.
        sha256: its hash, required for loading; empty in a version without the file.
        kind: noun for messages.
        command: command that trains a replacement.
        instead: choice without bundled weights, for hints.
    """

    path: Path
    sha256: str
    kind: str
    command: str
    instead: str

    @property
    def ships(self) -> bool:
        """True if this version of the package contains the file."""
        return bool(self.sha256)

    def checked(self, flag: str) -> Path:
        """Return the path after a check of the file's hash.

        Args:
            flag: option that asked for the file, for messages.

        Raises:
            UsageError: if this version does not contain the file.
            WeightsError: if the file is missing or has another hash.
        """
        if not self.ships:
            raise UsageError(
                f"{flag} {BUNDLED}: this version of sohes contains no {self.kind}.",
                f"Train one with {self.command} and name its folder, or use {self.instead}.",
            )
        from sohes_cli.runs.files import file_sha256

        hint = f"Install the package again, or use {self.instead}."
        if not self.path.is_file():
            raise WeightsError(f"The bundled {self.kind} {self.path} is missing.", hint)
        if file_sha256(self.path) != self.sha256:
            raise WeightsError(f"The bundled {self.kind} {self.path} is damaged: its SHA-256 is another.", hint)
        return self.path


BACKBONE = BundledFile(
    path=_FOLDER / "backbone.safetensors",
    sha256="",
    kind="backbone",
    command="sohes pretrain",
    instead="--backbone color-texture, or --weights random in sohes train",
)
MODEL = BundledFile(
    path=_FOLDER / "model.safetensors",
    sha256="",
    kind="model",
    command="sohes train",
    instead="--method explore, which needs none",
)
