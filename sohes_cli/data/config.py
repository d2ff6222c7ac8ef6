"""What training sees of a photograph: large-scale jitter, and the weak and strong views of phase 3."""

from __future__ import annotations

from dataclasses import dataclass

from sohes_cli.model.config import STRIDE
from sohes_cli.settings import require

__all__ = ["WEAK_VIEWS", "DataConfig", "ViewsConfig"]

WEAK_VIEWS = ("whole", "crop")


@dataclass(frozen=True)
class DataConfig:
    """What a step of training sees of a photograph: large-scale jitter.

    Args:
        image_size: side of the square in which a crop must fit, in pixels.
        scale: smallest and largest size of the photograph, 1 being the size at which it just fits in the square.
        flip: probability that it is mirrored.
        max_labels: labels of a crop that are learned from at most, each with its ancestors.
        label_choice: which ones where more are in view: `best`, those of the highest scores, or `random`, others each time.
        min_area_px: pixels of a crop below which what is left of a label is no target.
        min_visible: share of a label that must lie in the crop for it to be a target.
        validation: photographs that are left out of training and measured instead; -1 for a twentieth, at most 64.
    """

    image_size: int = 1024
    scale: tuple[float, ...] = (0.1, 2.0)
    flip: float = 0.5
    max_labels: int = 200
    label_choice: str = "random"
    min_area_px: int = 16
    min_visible: float = 0.2
    validation: int = -1

    def __post_init__(self) -> None:
        fits = 64 <= self.image_size <= 8192 and self.image_size % STRIDE == 0
        require(fits, "data.image_size", self.image_size, f"a multiple of {STRIDE} from 64 to 8192")
        pair = self.scale
        require(
            len(pair) == 2 and 0.05 <= pair[0] <= pair[1] <= 8,
            "data.scale",
            pair,
            "two increasing factors from 0.05 to 8",
        )
        require(0 <= self.flip <= 1, "data.flip", self.flip, "a probability in [0, 1]")
        require(1 <= self.max_labels <= 10000, "data.max_labels", self.max_labels, "from 1 to 10000")
        require(self.label_choice in ("best", "random"), "data.label_choice", self.label_choice, "best or random")
        require(self.min_area_px >= 1, "data.min_area_px", self.min_area_px, "at least 1")
        require(0 <= self.min_visible <= 1, "data.min_visible", self.min_visible, "a share in [0, 1]")
        require(self.validation >= -1, "data.validation", self.validation, "at least 0, or -1 to choose")

    def validation_of(self, photographs: int) -> int:
        """How many of this many photographs are left out of training."""
        return min(64, photographs // 20) if self.validation < 0 else self.validation


@dataclass(frozen=True)
class ViewsConfig:
    """What teacher and student see of a photograph.

    Args:
        weak: what the teacher sees: the `whole` photograph, or the student's `crop` of it.
        weak_flip: probability that the teacher's view of the whole photograph is mirrored.
        jitter: probability that the strong view's brightness, contrast, saturation and hue are changed.
        jitter_strength: how much: 1 is 0.4, 0.4, 0.2 and 0.1.
        grayscale: probability that it loses its color.
        blur: probability that it is blurred.
        erase: how probably rectangles are erased from it; 1 is 0.7, 0.5 and 0.3 for up to three of them.
    """

    weak: str = "whole"
    weak_flip: float = 0.5
    jitter: float = 0.8
    jitter_strength: float = 1.0
    grayscale: float = 0.2
    blur: float = 0.5
    erase: float = 1.0

    def __post_init__(self) -> None:
        require(self.weak in WEAK_VIEWS, "views.weak", self.weak, f"one of {', '.join(WEAK_VIEWS)}")
        for name in ("weak_flip", "jitter", "grayscale", "blur", "erase"):
            require(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "in [0, 1]")
        require(0 <= self.jitter_strength <= 2, "views.jitter_strength", self.jitter_strength, "from 0 to 2")
