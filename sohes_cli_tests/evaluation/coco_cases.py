"""Random annotated images and predictions with everything that COCO's rules treat apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["encoded", "random_case", "write_case"]


def encoded(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as a compressed run-length object."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def random_case(
    seed: int, *, images: int = 6, scores: int = 0, crowds: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An annotation file and a result list.

    Args:
        seed: of the case.
        images: annotated images, of different sizes, one without annotations and one without predictions.
        scores: number of distinct scores, so that ties arise; 0 for all different.
        crowds: whether there are crowd regions.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": c, "name": str(c)} for c in (3, 1, 2)],
    }
    results = []
    for image_id in rng.permutation(np.arange(1, images + 1) * 7).tolist():
        height, width = (int(v) for v in rng.integers(40, 260, 2))
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        masks = [] if image_id == 7 else [_blob(rng, height, width) for _ in range(rng.integers(1, 14))]
        for mask in masks:
            truth["annotations"].append(_annotation(rng, len(truth["annotations"]) + 1, image_id, mask, crowds))
        if image_id != 14:
            found = [_near(rng, mask) for mask in masks for _ in range(rng.integers(0, 4))]
            found += [_blob(rng, height, width) for _ in range(rng.integers(0, 10))]
            results += [_result(rng, image_id, mask, scores) for mask in found]
    return truth, [results[i] for i in rng.permutation(len(results))]


def write_case(folder: Path, truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Path, Path]:
    """The case as files: annotations, results."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "results.json"


def _blob(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.bool_]:
    """An ellipse or a box, from a few pixels to all of the image, at times empty."""
    y, x = np.mgrid[:height, :width]
    center_y, center_x = rng.uniform(0, height), rng.uniform(0, width)
    radius_y, radius_x = rng.uniform(1, 8 ** rng.uniform(0.3, 2.2), 2)
    if rng.random() < 0.5:
        return np.asarray(((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 < 1)
    return np.asarray((abs(y - center_y) < radius_y) & (abs(x - center_x) < radius_x))


def _near(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask itself, or moved a little, or with pixels lost."""
    kind = rng.random()
    if kind < 0.25:
        return mask
    if kind < 0.7:
        return np.roll(mask, tuple(int(v) for v in rng.integers(-6, 7, 2)), (0, 1))
    return np.asarray(mask & (rng.random(mask.shape) < rng.uniform(0.5, 1)))


def _annotation(
    rng: np.random.Generator, annotation_id: int, image_id: int, mask: npt.NDArray[np.bool_], crowds: bool
) -> dict[str, Any]:
    is_crowd = crowds and rng.random() < 0.15
    extra = {"ignore": 1} if rng.random() < 0.1 else {}
    rle: dict[str, Any] = encoded(mask)
    if is_crowd:  # COCO writes these uncompressed
        rle = {"size": rle["size"], "counts": _run_lengths(mask)}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": int(rng.integers(1, 4)),
        "segmentation": rle,
        "area": float(mask.sum() * rng.uniform(0.8, 1.2)) if rng.random() < 0.3 else int(mask.sum()),
        "bbox": [0, 0, 1, 1],
        "iscrowd": int(is_crowd),
        **extra,
    }


def _run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    pixels = np.concatenate(([0], mask.T.ravel().astype(np.int8), [1 - int(mask[-1, -1])]))
    changes = np.flatnonzero(np.diff(pixels))
    return [int(v) for v in np.diff(np.concatenate(([0], changes)))]


def _result(rng: np.random.Generator, image_id: int, mask: npt.NDArray[np.bool_], scores: int) -> dict[str, Any]:
    score = float(rng.random()) if not scores else float(rng.integers(scores)) / scores
    return {"image_id": image_id, "category_id": int(rng.integers(1, 4)), "segmentation": encoded(mask), "score": score}
