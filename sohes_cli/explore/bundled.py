"""A backbone as a part of the package: where it lies, and that it is the right one.

This version has none: the weights that two CPU cores reached in 74 minutes were no clear gain over `color-texture` on photographs that had
no part in choosing settings (`benchmarks/results/backbone_quality.json`). `python -m sohes_cli.pretrain.bundle RUN` puts one in its place.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.explore.weights import file_sha256

__all__ = ["BUNDLED_PATH", "BUNDLED_SHA256", "bundled_file"]

BUNDLED_PATH = Path(str(resources.files("sohes_cli"))) / "bundled" / "backbone.safetensors"

BUNDLED_SHA256 = ""
"""Of the file, without which it is not loaded; empty while there is none."""


def bundled_file() -> Path:
    """The bundled backbone's file.

    Raises:
        UsageError: if this version has none.
        WeightsError: if it is missing, or another than the one of this version.
    """
    if not BUNDLED_SHA256:
        raise UsageError(
            "--backbone bundled: this version of sohes has no backbone of its own.",
            "Train one with sohes pretrain and name its folder, or use --backbone color-texture.",
        )
    if not BUNDLED_PATH.is_file():
        raise WeightsError(
            f"The bundled backbone {BUNDLED_PATH} is missing.", "Install the package again, or use --backbone color-texture."
        )
    if file_sha256(BUNDLED_PATH) != BUNDLED_SHA256:
        raise WeightsError(f"The bundled backbone {BUNDLED_PATH} is damaged: its SHA-256 is another.", "Install the package again.")
    return BUNDLED_PATH
