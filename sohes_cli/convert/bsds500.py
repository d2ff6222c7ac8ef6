"""BSDS500: 500 photographs, each partitioned by several people (Arbelaez et al., TPAMI 2011; Martin et al., ICCV 2001).

Layout: the content of `BSR_bsds500.tgz`, `BSDS500/data/images/SPLIT/N.jpg` and `BSDS500/data/groundTruth/SPLIT/N.mat`.
A .mat file holds the cell `groundTruth`, a struct for each annotator, whose `Segmentation` (uint16 [H, W]) numbers the
regions from 1. Each label of each annotator is a mask, even one of several pieces; a region that several annotators
drew alike to the pixel is written once, for the first of them. Partitions are flat, so `parent` is null. Results are
reported on `test`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_cli.convert.ground_truth import Category, Converter, Dataset, TruthImage, TruthMask, convert_each
from sohes_cli.convert.label_maps import image_size, regions_of_map
from sohes_cli.errors import DatasetError, reason_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["BSDS500"]

_IMAGES = {"test": 200, "val": 100, "train": 200}
_ROOTS = ("data", "BSDS500/data", "BSR/BSDS500/data")
_NAME = re.compile(r"([0-9]+)\.jpg")
_REGION = Category(1, "region", "region")
_UNLABELED = 0


def _open_bsds500(source: Path, split: str) -> Dataset:
    folders = ("images", "groundTruth")
    found = (root for root in _ROOTS if all((source / root / folder / split).is_dir() for folder in folders))
    root = next(found, None)
    if root is None:
        looked_for = " or ".join(f"{root}/{{images,groundTruth}}/{split}" for root in _ROOTS)
        hint = "Give the folder into which BSR_bsds500.tgz was unpacked."
        raise DatasetError(f"{source} holds no {looked_for}.", hint)
    images, ground_truth = (source / root / folder / split for folder in folders)
    numbers = sorted(int(match[1]) for path in images.iterdir() if (match := _NAME.fullmatch(path.name)))
    if not numbers:
        raise DatasetError(f"{images} holds no NUMBER.jpg.", "Unpack BSR_bsds500.tgz again.")
    return Dataset(
        name="bsds500",
        split=split,
        images=convert_each(numbers, lambda n: _image(images, ground_truth, n), lambda n: ground_truth / f"{n}.mat"),
        total=len(numbers),
        categories=lambda: (_REGION,),
        image_root=f"{root}/images/{split}",
        expected_images=_IMAGES[split],
    )


BSDS500 = Converter(("test", "val", "train"), _open_bsds500)


def _image(images: Path, ground_truth: Path, number: int) -> TruthImage:
    partitions = _read_partitions(ground_truth / f"{number}.mat")
    height, width = image_size(images / f"{number}.jpg")
    if any(partition.shape != (height, width) for partition in partitions):
        raise ValueError(f"it has a partition of another size than its image's {[height, width]}")
    return TruthImage(number, f"{number}.jpg", height, width, _masks(partitions))


def _masks(partitions: Sequence[NDArray[np.integer[Any]]]) -> tuple[TruthMask, ...]:
    """Make the masks of all annotators, equal ones once, in the order of annotators and labels."""
    drawn: dict[str, TruthMask] = {}
    for annotator, partition in enumerate(partitions, start=1):
        for region in regions_of_map(partition):
            if region.value != _UNLABELED:
                extra = {"annotator": annotator}
                mask = TruthMask(region.segmentation, region.area_px, region.bbox_xywh, _REGION.id, extra=extra)
                drawn.setdefault(region.segmentation["counts"], mask)
    return tuple(drawn.values())


def _read_partitions(path: Path) -> list[NDArray[np.integer[Any]]]:
    """Read the region map [H, W] of each annotator.

    Raises:
        OSError: if its folder may not be read.
        ValueError: if the file is missing or damaged, or not in BSDS500's layout.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise ValueError("it is missing")
    try:
        content = loadmat(str(path), variable_names=["groundTruth"])
    except Exception as error:  # SciPy raises zlib's, struct's and other errors of a damaged file
        raise ValueError(f"it cannot be read as a .mat file ({reason_of(error)})") from error
    try:
        partitions = [np.asarray(annotator["Segmentation"].flat[0]) for annotator in content["groundTruth"].flat]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError("it holds no cell groundTruth of structs with a Segmentation") from error
    if not partitions or any(p.ndim != 2 or not p.size or p.dtype.kind not in "ui" for p in partitions):
        raise ValueError("it holds a Segmentation that is no map of whole numbers, or none at all")
    return partitions
