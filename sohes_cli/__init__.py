"""SOHES: self-supervised open-world hierarchical entity segmentation (Cao et al., ICLR 2024, arXiv 2404.12386).

from sohes_cli import Segmenter
prediction = Segmenter.load("runs/instruct")("photo.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.version import __version__

if TYPE_CHECKING:
    from sohes_cli.inference.config import SegmentConfig
    from sohes_cli.inference.prediction import Prediction
    from sohes_cli.inference.segmenter import Segmenter

__all__ = ["Prediction", "SegmentConfig", "Segmenter", "__version__"]

_MODULES = {"Prediction": "prediction", "SegmentConfig": "config", "Segmenter": "segmenter"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: PyTorch takes seconds, and `sohes --help` needs none of it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.inference.{_MODULES[name]}"), name)
