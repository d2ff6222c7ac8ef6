"""Label sets of random rectangles on photographs that show them, as label folders and as COCO files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sohes_cli.labels.manifest import Manifest, images_entry, open_store
from sohes_cli.labels.records import label_record
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.structures import Forest, LabelRecord

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAMES = ("a.png", "b.png", "sub/c.png", "sub/flügel.png", "z.png")


def random_forest(n: int, rng: np.random.Generator, roots: float = 0.3) -> NDArray[np.int64]:
    """A forest whose nodes stand in no particular order, int64 [n]."""
    names = rng.permutation(n)
    parents = np.full(n, -1, np.int64)
    for i in range(1, n):
        if rng.random() >= roots:
            parents[names[i]] = names[rng.integers(i)]
    return parents


def random_masks(n: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Rectangles, noise, empty and full masks, bool [n, height, width]."""
    masks = np.zeros((n, height, width), np.bool_)
    for mask in masks:
        kind = rng.integers(6)
        top, left = rng.integers(height), rng.integers(width)
        if kind < 4:
            mask[top : top + 1 + rng.integers(height), left : left + 1 + rng.integers(width)] = True
        elif kind == 4:
            mask[:] = rng.random((height, width)) < rng.random()
        else:
            mask[:] = rng.random() < 0.5
    return masks


def record_of(
    masks: NDArray[np.bool_], parents: NDArray[np.int64], scores: NDArray[np.float64], name: str = "a.png"
) -> LabelRecord:
    """The record of masks bool [N, H, W]."""
    packed = PackedMasks.from_masks(masks)
    return label_record(name, *masks.shape[1:], packed, scores, Forest(tuple(parents.tolist())))


def two_boxes(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A large rectangle and one within it, bool [2, height, width]."""
    masks = np.zeros((2, height, width), np.bool_)
    top, left = rng.integers(height // 4), rng.integers(width // 4)
    masks[0, top : top + height // 2, left : left + width // 2] = True
    masks[1, top + 2 : top + height // 3, left + 2 : left + width // 3] = True
    return masks


def write_set(folder: Path, names: tuple[str, ...] = NAMES, seed: int = 0) -> Path:
    """Write photographs to `folder`/images and their labels to `folder`/labels, which is returned.

    The first mask is the red channel of a photograph, the second the green one.
    """
    store = open_store(
        folder / "labels", Manifest("explore", images_entry(folder / "labels", folder / "images"), {}, {}, {})
    )
    for i, name in enumerate(names):
        rng = np.random.default_rng((seed, i))
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        masks = two_boxes(height, width, rng)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., :2] = 255 * masks.transpose(1, 2, 0)
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        store.write(record_of(masks, np.array([-1, 0]), np.array([0.5, 0.75]), name))
    return folder / "labels"


def write_coco(path: Path, images: list[tuple[str, int, int]], annotations: list[dict[str, object]]) -> Path:
    """Write a COCO annotation file; images are (name, height, width) and have ids from 1."""
    listed = [{"id": i, "file_name": name, "height": h, "width": w} for i, (name, h, w) in enumerate(images, start=1)]
    path.write_text(json.dumps({"images": listed, "annotations": annotations}))
    return path
