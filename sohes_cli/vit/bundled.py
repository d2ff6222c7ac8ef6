"""Weights as a part of the package: where each file lies, and that it is the right one.

This version has none, for two CPU cores trained none that is better than what needs no training, on photographs that had no part in
choosing settings: a backbone of 74 minutes is no clear gain over `color-texture` (`benchmarks/results/backbone_quality.json`), and a model
of 160 minutes finds less than phase 1, from whose labels it learned (`benchmarks/results/model_scores.json`). `python -m
sohes_benchmarks.bundle RUN` puts a backbone or a model in its place, in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sohes_cli.errors import UsageError, WeightsError

__all__ = ["BACKBONE", "BUNDLED", "MODEL", "BundledFile"]

BUNDLED = "bundled"
"""The word that asks for weights of the package where a run or a file may be named."""

_FOLDER = Path(str(resources.files("sohes_cli"))) / "weights"


@dataclass(frozen=True)
class BundledFile:
    """A weights file of the package.

    Args:
        path: where it lies.
        sha256: of the file, without which it is not loaded; empty in a version that has none.
        kind: what it is, in a word for messages.
        command: what trains another one.
        instead: what needs none, for hints.
    """

    path: Path
    sha256: str
    kind: str
    command: str
    instead: str

    @property
    def ships(self) -> bool:
        """Whether this version of the package has it."""
        return bool(self.sha256)

    def checked(self, flag: str) -> Path:
        """The file, once it is known to be that of this version.

        Args:
            flag: what asked for it, for messages.

        Raises:
            UsageError: if this version has none.
            WeightsError: if it is missing, or another than the one of this version.
        """
        if not self.ships:
            raise UsageError(
                f"{flag} {BUNDLED}: this version of sohes has no {self.kind} of its own.",
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
