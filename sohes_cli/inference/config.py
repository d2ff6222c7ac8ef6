"""The settings of a trained model at work: which of its masks are kept, and where their forest comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import SohesError, WeightsError
from sohes_cli.settings import require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "FORESTS",
    "MOST_VIEWS",
    "OWN_SETTINGS",
    "REFINEMENTS",
    "SIZES",
    "SegmentConfig",
    "check_own",
    "is_size",
    "own_settings",
]

FORESTS = ("head", "geometry")
"""The two sources of a forest: the ancestor head, and which mask covers which."""

REFINEMENTS = ("none", "superpixels")
"""What happens to the masks' edges."""

MOST_VIEWS = 8
"""Four sizes of the photograph, each of them also mirrored; see `sohes_cli.inference.voting`."""

SIZES = (32, 8192)
"""The smallest and the largest size of the image, the longer side as the network sees it, in pixels."""

OWN_SETTINGS = "segment"
"""Where a model file's header has the settings that suit its model; a run's model has none, so it works with the defaults."""


@dataclass(frozen=True)
class SegmentConfig:
    """Everything but the weights and the size of the image that decides a prediction.

    Args:
        forest: `head` for the forest of the ancestor head, `geometry` for that of phase 1, from the masks alone.
        min_score: the least score of a mask.
        max_masks: the most masks of an image.
        nms_iou: a mask with at least this IoU with a better one is dropped; 1 drops equal masks only.
        refine: `superpixels` redraws each mask along the photograph's edges, see `sohes_cli.inference.snapping`; `none` leaves it.
        views: of the photograph that vote on its masks, see `sohes_cli.inference.voting`; 1 is the photograph as it is. Masks of several
            views with an IoU of 0.7 or more are one, whatever `nms_iou` is.
    """

    forest: str = "head"
    min_score: float = 0.01
    max_masks: int = 1000
    nms_iou: float = 0.9
    refine: str = "none"
    views: int = 1

    def __post_init__(self) -> None:
        require(self.forest in FORESTS, "segment.forest", self.forest, f"one of {', '.join(FORESTS)}")
        require(0 <= self.min_score <= 1, "segment.min_score", self.min_score, "a score in [0, 1]")
        require(self.max_masks >= 1, "segment.max_masks", self.max_masks, "at least 1")
        require(0 < self.nms_iou <= 1, "segment.nms_iou", self.nms_iou, "above 0 and at most 1")
        require(self.refine in REFINEMENTS, "segment.refine", self.refine, f"one of {', '.join(REFINEMENTS)}")
        is_count = isinstance(self.views, int) and not isinstance(self.views, bool)
        require(
            is_count and 1 <= self.views <= MOST_VIEWS,
            "segment.views",
            self.views,
            f"a whole number from 1 to {MOST_VIEWS}",
        )


def is_size(value: object) -> bool:
    """Whether a value can be the size of the image: a whole number of pixels in `SIZES`."""
    return isinstance(value, int) and not isinstance(value, bool) and SIZES[0] <= value <= SIZES[1]


def own_settings(description: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The settings that suit a model, as its file names them.

    Args:
        description: what the file's header says.
        file: for messages.

    Returns:
        Some of `image_size`, `views` and `refine`, or none.

    Raises:
        WeightsError: if they are none that this version knows.
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
    """Raise ConfigError or TypeError unless these can be the settings of a model: some of `image_size`, `views` and `refine`."""
    unknown = set(own) - {"image_size", "views", "refine"}
    require(not unknown, "segment", ", ".join(sorted(unknown)), "image_size, views and refine alone")
    require(
        is_size(own.get("image_size", SIZES[0])),
        "segment.image_size",
        own.get("image_size"),
        f"from {SIZES[0]} to {SIZES[1]} pixels",
    )
    SegmentConfig(**{name: value for name, value in own.items() if name != "image_size"})
