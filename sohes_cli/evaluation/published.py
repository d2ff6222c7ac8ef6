"""Published scores: class-agnostic mask AR at 1,000 masks per image, in percent, by data set and method.

Sources: the papers of SOHES (Cao et al. 2024), UnSAM (Wang et al. 2024) and MoSA, and of the methods in their tables.
Methods without a published number are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PUBLISHED_AR", "check_published", "published_ar", "published_dataset"]

PUBLISHED_AR: dict[str, dict[str, float]] = {
    "coco": {"SAM": 49.6, "FreeSOLO": 11.6, "CutLER": 28.1, "SOHES": 30.5, "UnSAM": 42.0, "MoSA": 43.5},
    "lvis": {"SAM": 46.1, "FreeSOLO": 5.9, "CutLER": 20.2, "HASSOD": 22.5, "SOHES": 29.1, "UnSAM": 40.5, "MoSA": 42.2},
    "ade20k": {
        "SAM": 45.8,
        "FreeSOLO": 7.3,
        "CutLER": 26.3,
        "HASSOD": 27.8,
        "SOHES": 31.1,
        "UnSAM": 37.5,
        "MoSA": 38.4,
    },
    "entityseg": {
        "SAM": 45.9,
        "FreeSOLO": 8.0,
        "CutLER": 23.1,
        "HASSOD": 26.2,
        "SOHES": 33.5,
        "UnSAM": 41.0,
        "MoSA": 41.1,
    },
    "sa1b": {"SAM": 60.8, "FreeSOLO": 2.2, "CutLER": 17.0, "HASSOD": 26.0, "SOHES": 33.3, "UnSAM": 44.5, "MoSA": 48.2},
    "partimagenet": {"SAM": 28.3, "FreeSOLO": 13.8, "CutLER": 28.7, "SOHES": 36.0, "UnSAM": 52.7, "MoSA": 52.7},
    "paco": {"SAM": 18.1, "FreeSOLO": 2.4, "CutLER": 8.9, "HASSOD": 11.4, "SOHES": 17.1, "UnSAM": 29.7, "MoSA": 28.4},
}
"""SAM is supervised, the others are not."""

# of SA-1B the papers score 1,000 images that were not published
_SPLITS = {"coco": "val2017", "ade20k": "validation", "entityseg": "val_lr", "sa1b": "all"}
_DEFAULT_SPLIT = "val"


def published_ar(dataset: str | None) -> dict[str, float]:
    """Return the scores by method, in percent; empty for None or a data set in none of the papers."""
    return PUBLISHED_AR.get(dataset or "", {})


def published_dataset(info: Mapping[str, Any]) -> str | None:
    """Return the data set named by an annotation file's `info`, if its split is absent or the one papers score."""
    dataset, split = info.get("dataset"), info.get("split")
    if not isinstance(dataset, str) or dataset not in PUBLISHED_AR:
        return None
    return dataset if split in (None, _SPLITS.get(dataset, _DEFAULT_SPLIT)) else None


def check_published(dataset: str) -> None:
    """Raise UsageError for a data set without published scores."""
    if dataset not in PUBLISHED_AR:
        message = f"--published {dataset}: no scores are known.{nearest(dataset, PUBLISHED_AR)}"
        raise UsageError(message, f"Give one of {', '.join(PUBLISHED_AR)}.")
