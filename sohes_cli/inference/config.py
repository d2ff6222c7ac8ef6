"""Settings of inference: selection of masks, source of their forest, refinement and views."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import SohesError, WeightsError
from sohes_cli.settings import Group, count, require, setting, share

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "MOST_VIEWS",
    "OWN_SETTINGS",
    "SIZES",
    "ForestSource",
    "MaskRefinement",
    "SegmentConfig",
    "check_own",
    "is_size",
    "own_settings",
]

MOST_VIEWS = 8
"""Largest number of views: four sizes of the photograph, each also mirrored; see `sohes_cli.inference.voting`."""

SIZES = (32, 8192)
"""Smallest and largest longer side of the network's input in pixels."""

OWN_SETTINGS = "segment"
"""Key of a model file's header for the settings that suit the model; absent in the model of a run."""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class ForestSource(StrEnum):
    """Source of a forest: the ancestor head, or the overlap of the masks as in phase 1."""

    head = "head"
    geometry = "geometry"


class MaskRefinement(StrEnum):
    """Refinement of the masks' edges: none, or along superpixels; see `sohes_cli.inference.snapping`."""

    none = "none"
    superpixels = "superpixels"


@dataclass(frozen=True)
class SegmentConfig(Group, name="segment"):
    """All settings that determine a prediction, apart from the weights and the input size."""

    forest: str = setting("head", "Source of the forest: ancestor `head`, or `geometry`.", choices=ForestSource)
    min_score: float = share(0.01, "Least score of a mask.", noun="a score")
    max_masks: int = count(1000, "Largest number of masks of an image, best scores first.")
    nms_iou: float = setting(0.9, "IoU with a better mask from which a mask is dropped.", above=0, maximum=1)
    refine: str = setting("none", "`superpixels` redraws masks along edges.", choices=MaskRefinement)
    views: int = setting(
        1,
        "Views that vote on the masks, 1 for the photograph alone; their masks merge from an IoU of 0.7 in any case.",
        minimum=1,
        maximum=MOST_VIEWS,
        rule=_is_whole,
        allowed=f"a whole number from 1 to {MOST_VIEWS}",
    )


def is_size(value: object) -> bool:
    """True for an input size: a whole number of pixels within `SIZES`."""
    return isinstance(value, int) and _is_whole(value) and SIZES[0] <= value <= SIZES[1]


def own_settings(description: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Read a model's own settings from the header of its file.

    Args:
        description: header of the file.
        file: file name for messages.

    Returns:
        Some of `image_size`, `views` and `refine`, or none.

    Raises:
        WeightsError: if this version does not know them.
    """
    own = description.get(OWN_SETTINGS, {})
    try:
        check_own(own)
    except (AttributeError, TypeError, SohesError) as error:
        wrong = getattr(error, "message", f"{error}.")
        raise WeightsError(
            f"{file} names settings of its own that are wrong: {wrong}", "It is of another version: give another one."
        ) from error
    return dict(own)


def check_own(own: Mapping[str, Any]) -> None:
    """Raise ConfigError or TypeError unless these are a model's own settings: `image_size`, `views` and `refine`."""
    unknown = set(own) - {"image_size", "views", "refine"}
    require(not unknown, "segment", ", ".join(sorted(unknown)), "image_size, views and refine alone")
    fits, allowed = is_size(own.get("image_size", SIZES[0])), f"from {SIZES[0]} to {SIZES[1]} pixels"
    require(fits, "segment.image_size", own.get("image_size"), allowed)
    SegmentConfig(**{name: value for name, value in own.items() if name != "image_size"})
