"""The settings of a trained model at work: which of its masks are kept, and where their forest comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.config import require
from sohes_cli.errors import SohesError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORESTS", "MOST_VIEWS", "OWN_SETTINGS", "REFINEMENTS", "SegmentConfig", "own_settings"]

FORESTS = ("head", "geometry")
"""The two sources of a forest: the ancestor head, and which mask covers which."""

REFINEMENTS = ("none", "superpixels")
"""What happens to the masks' edges."""

MOST_VIEWS = 8
"""Four sizes of the photograph, each of them also mirrored; see `sohes_cli.inference.voting`."""

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
        views: of the photograph that vote on its masks, see `sohes_cli.inference.voting`; 1 is the photograph as it is.
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
        require(1 <= self.views <= MOST_VIEWS, "segment.views", self.views, f"from 1 to {MOST_VIEWS}")


def own_settings(description: Mapping[str, Any], image_size: int | None, changes: Mapping[str, Any]) -> tuple[int | None, SegmentConfig]:
    """The settings of a model: those that are given, else those of its file, else the defaults.

    Args:
        description: what the file's header says.
        image_size: pixels of the longer side, if it is given.
        changes: settings of `SegmentConfig` that are given.

    Returns:
        The image size, None if neither says one, and the other settings.

    Raises:
        ConfigError: if a given setting is wrong.
        WeightsError: if the file's are.
    """
    SegmentConfig(**changes)
    own = description.get(OWN_SETTINGS, {})
    try:
        size, others = own.get("image_size"), {name: value for name, value in own.items() if name != "image_size"}
        return image_size or size, SegmentConfig(**{**others, **changes})
    except (AttributeError, TypeError, SohesError) as error:
        raise WeightsError(f"The model's own settings are wrong: {error}", "It is of another version.") from error
