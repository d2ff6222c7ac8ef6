"""Settings of training data: large-scale jitter, and the weak and strong views of phase 3."""

from __future__ import annotations

from dataclasses import dataclass

from sohes_cli.model.config import STRIDE
from sohes_cli.settings import Group, count, is_increasing_pair, probability, setting, share

__all__ = ["DataConfig", "ViewsConfig"]


@dataclass(frozen=True)
class DataConfig(Group, name="data"):
    """Crops of training photographs (large-scale jitter) and their targets."""

    image_size: int = setting(
        1024,
        "Side in pixels of the square that bounds a crop.",
        minimum=64,
        maximum=8192,
        rule=lambda size: size % STRIDE == 0,
        allowed=f"a multiple of {STRIDE} from 64 to 8192",
    )
    scale: tuple[float, ...] = setting(
        (0.1, 2.0),
        "Smallest and largest scale of the photograph; at 1 it just fits in the square.",
        minimum=0.05,
        maximum=8,
        rule=is_increasing_pair,
        allowed="two increasing factors from 0.05 to 8",
    )
    flip: float = probability(0.5, "Probability of a horizontal flip.")
    max_labels: int = setting(200, "Most labels of a crop, each with its ancestors.", minimum=1, maximum=10000)
    label_choice: str = setting(
        "random",
        "Labels to keep beyond `max_labels`: `best`, those of the highest scores, or `random`, anew each time.",
        choices=("best", "random"),
        allowed="best or random",
    )
    min_area_px: int = count(16, "Area in a crop below which a label is no target.")
    min_visible: float = share(0.2, "Share of a label that must be in the crop for it to be a target.")
    validation: int = setting(
        -1, "Held-out photographs; -1 for a twentieth, at most 64.", minimum=-1, allowed="at least 0, or -1 to choose"
    )

    def validation_of(self, photographs: int) -> int:
        """Return the number of photographs to hold out among this many."""
        return min(64, photographs // 20) if self.validation < 0 else self.validation


@dataclass(frozen=True)
class ViewsConfig(Group, name="views"):
    """Augmentation of the teacher's weak and the student's strong view."""

    weak: str = setting(
        "whole", "Input of the teacher: the `whole` photograph, or the student's `crop`.", choices=("whole", "crop")
    )
    weak_flip: float = share(0.5, "Probability that the whole photograph is mirrored.", allowed="in [0, 1]")
    jitter: float = share(0.8, "Probability of color jitter in the strong view.", allowed="in [0, 1]")
    jitter_strength: float = setting(
        1.0, "Strength; 1 is 0.4, 0.4, 0.2, 0.1 of brightness, contrast, saturation, hue.", minimum=0, maximum=2
    )
    grayscale: float = share(0.2, "Probability of a grayscale strong view.", allowed="in [0, 1]")
    blur: float = share(0.5, "Probability of a blurred strong view.", allowed="in [0, 1]")
    erase: float = share(
        1.0, "Factor of 0.7, 0.5 and 0.3, the probabilities of erased rectangles.", allowed="in [0, 1]"
    )
