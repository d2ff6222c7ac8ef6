"""Selection of the masks in a picture, the best-scoring ones with their forest, and their colors.

The overlay, the tree and the forest picture show the same masks in the same colors: a hue for each tree, its parts in
lighter and darker shades near that hue. Colors are in OKLCH, where equal steps look equal.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sohes_cli.structures import Annotation, LabelRecord

__all__ = ["Color", "count_masks", "mask_colors", "percentage", "select_masks", "tree_order"]

Color = tuple[int, int, int]

N_HUES = 12
_FIRST_HUE = 45 / 360  # orange
_HUE_STEP = 5  # 150 degrees, coprime to the number of hues
_HUE_JITTER = 0.4  # of the angle between two hues, so that families stay apart
_GOLDEN = (math.sqrt(5) - 1) / 2
_ROOT_LIGHTNESS, _ROOT_CHROMA = 0.68, 0.17
_DARKEST, _LIGHTEST, _LIGHTNESS_GAP = 0.42, 0.9, 0.1


def select_masks(record: LabelRecord, max_masks: int) -> LabelRecord:
    """Keep the best-scoring masks of a record; a kept mask becomes a part of its nearest kept ancestor, or a root.

    Args:
        record: the labels of one image.
        max_masks: maximum number of masks, at least 1; of equal scores the earlier ones are kept.

    Raises:
        ValueError: if `max_masks` is less than 1.
    """
    if max_masks < 1:
        raise ValueError(f"max_masks must be at least 1, got {max_masks}")
    ranked = sorted(range(len(record.annotations)), key=lambda i: -record.annotations[i].score)
    kept = set(ranked[:max_masks])
    forest = record.forest
    annotations = []
    for i, annotation in enumerate(record.annotations):
        if i in kept:
            above = [record.annotations[j].id for j in forest.ancestors(i) if j in kept]
            annotations.append(replace(annotation, parent=above[0] if above else None, level=len(above)))
    return replace(record, annotations=tuple(annotations))


def tree_order(record: LabelRecord) -> tuple[list[int], list[list[int]]]:
    """Sort the forest for display: by decreasing area, then by id.

    Returns:
        Indices of the roots, and the children of each index.
    """
    forest = record.forest

    def by_area(nodes: list[int]) -> list[int]:
        return sorted(nodes, key=lambda i: (-record.annotations[i].area, record.annotations[i].id))

    return by_area(forest.roots), [by_area(nodes) for nodes in forest.children]


def count_masks(record: LabelRecord, shown: LabelRecord) -> str:
    """Describe the numbers of shown masks and trees in words."""
    n, n_shown, n_trees = len(record.annotations), len(shown.annotations), len(shown.forest.roots)
    masks = f"{n} mask{'s' * (n != 1)}" if n == n_shown else f"the best {n_shown} of {n} masks"
    return f"{masks} in {n_trees} tree{'s' * (n_trees != 1)}"


def percentage(annotation: Annotation) -> str:
    """Format the share of the image that a mask covers, in percent with two significant digits."""
    height, width = annotation.segmentation["size"]
    share = 100 * annotation.area / max(height * width, 1)
    return f"{share:.0f}%" if share >= 10 else f"{share:.2g}%"


def mask_colors(record: LabelRecord) -> list[Color]:
    """Choose an RGB color in 0..255 per annotation: a hue per tree, far apart if roots touch, shades for parts."""
    roots, children = tree_order(record)
    lch: dict[int, tuple[float, float, float]] = {}
    for root, hue in zip(roots, _root_hues([record.annotations[i] for i in roots]), strict=True):
        lch[root] = (_ROOT_LIGHTNESS, _ROOT_CHROMA, hue)
        parts = [(root, child) for child in children[root]]
        for k, (parent, node) in enumerate(parts):
            lch[node] = _shade(lch[parent][0], hue, k)
            parts += [(node, child) for child in children[node]]  # appended during iteration: breadth first
    return [_rgb(*lch[i]) for i in range(len(record.annotations))]


def _root_hues(roots: list[Annotation]) -> list[float]:
    """Choose a hue in [0, 1) per root from a wheel: farthest from roots with touching boxes, then least used."""
    wheel = [(_FIRST_HUE + i * _HUE_STEP / N_HUES) % 1 for i in range(N_HUES)]
    chosen: list[float] = []
    for root in roots:
        near = [hue for other, hue in zip(roots, chosen, strict=False) if _boxes_meet(root, other)]
        chosen.append(min(wheel, key=lambda hue: (-_distance(hue, near), chosen.count(hue))))
    return chosen


def _boxes_meet(a: Annotation, b: Annotation) -> bool:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.bbox_xywh, b.bbox_xywh
    return ax <= bx + bw and bx <= ax + aw and ay <= by + bh and by <= ay + ah


def _distance(hue: float, others: list[float]) -> float:
    return min((min(abs(hue - other), 1 - abs(hue - other)) for other in others), default=0.5)


def _shade(parent_lightness: float, hue: float, k: int) -> tuple[float, float, float]:
    """Return lightness, chroma and hue of a tree's k-th part, distinct from its parent and the parts before it."""
    below = max(parent_lightness - _LIGHTNESS_GAP - _DARKEST, 0.0)
    above = max(_LIGHTEST - parent_lightness - _LIGHTNESS_GAP, 0.0)
    at = (0.85 + k * _GOLDEN) % 1 * (below + above)
    lightness = _DARKEST + at if at < below else _LIGHTEST - (below + above - at)
    jitter = (2 * ((k + 1) * _GOLDEN**2 % 1) - 1) * _HUE_JITTER / N_HUES
    return lightness, _ROOT_CHROMA * (0.75 if k % 2 else 1.0), hue + jitter


def _rgb(lightness: float, chroma: float, hue: float) -> Color:
    """Convert OKLCH to sRGB, less saturated where out of gamut (Ottosson 2020, oklab)."""
    while True:
        a, b = chroma * math.cos(2 * math.pi * hue), chroma * math.sin(2 * math.pi * hue)
        red, green, blue = _linear_rgb(lightness, a, b)
        if chroma < 0.01 or all(-1e-4 <= value <= 1 + 1e-4 for value in (red, green, blue)):
            return _byte(red), _byte(green), _byte(blue)
        chroma *= 0.97


def _linear_rgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _byte(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    encoded = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * encoded)
