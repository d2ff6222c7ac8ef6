"""BSDS500: 500 photographs, each partitioned by several people (Arbelaez et al., TPAMI 2011; Martin et al., ICCV 2001).

Layout: what `BSR_bsds500.tgz` unpacks to, `BSDS500/data/images/SPLIT/N.jpg` and `BSDS500/data/groundTruth/SPLIT/N.mat`. A .mat file
holds the cell `groundTruth`, a struct for each annotator, whose `Segmentation` (uint16 [H, W]) numbers the regions from 1. Each label
of each annotator is a mask as it was annotated, also where it is in several pieces. A region that several annotators drew to the pixel
is written once, for the first of them. The partitions are flat and no annotator's regions are parts of another's, so `parent` is
null. Results are reported on `test`, by the authors' guidelines.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_cli.convert.ground_truth import BadFile, Category, Dataset, TruthImage, TruthMask
from sohes_cli.convert.label_maps import image_size, regions_of_map
from sohes_cli.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["SPLITS", "open_bsds500"]

SPLITS: tuple[str, ...] = ("test", "val", "train")

_IMAGES = {"test": 200, "val": 100, "train": 200}
_ROOTS = ("data", "BSDS500/data", "BSR/BSDS500/data")
_NAME = re.compile(r"([0-9]+)\.jpg")
_REGION = Category(1, "region", "region")
_UNLABELED = 0


def open_bsds500(source: Path, split: str) -> Dataset:
    """Open BSDS500.

    Args:
        source: the folder `BSDS500`, or the one into which the archive was unpacked.
        split: one of `SPLITS`.

    Raises:
        DatasetError: if the folders of images and ground truth are not there, or hold no image.
    """
    root = next(
        (root for root in _ROOTS if all((source / root / kind / split).is_dir() for kind in ("images", "groundTruth"))),
        None,
    )
    if root is None:
        looked_for = " or ".join(f"{root}/{{images,groundTruth}}/{split}" for root in _ROOTS)
        raise DatasetError(
            f"{source} holds no {looked_for}.", "Give the folder into which BSR_bsds500.tgz was unpacked."
        )
    images = source / root / "images" / split
    numbers = sorted(int(match[1]) for path in images.iterdir() if (match := _NAME.fullmatch(path.name)))
    if not numbers:
        raise DatasetError(f"{images} holds no NUMBER.jpg.", "Unpack BSR_bsds500.tgz again.")
    return Dataset(
        name="bsds500",
        split=split,
        images=_images(images, source / root / "groundTruth" / split, numbers),
        total=len(numbers),
        categories=lambda: (_REGION,),
        image_root=f"{root}/images/{split}",
        expected_images=_IMAGES[split],
    )


def _images(images: Path, ground_truth: Path, numbers: Sequence[int]) -> Iterator[TruthImage | BadFile]:
    for number in numbers:
        path = ground_truth / f"{number}.mat"
        try:
            partitions = _read_partitions(path)
            height, width = image_size(images / f"{number}.jpg")
            if any(partition.shape != (height, width) for partition in partitions):
                raise ValueError(f"has a partition of another size than its image's {[height, width]}")
        except OSError as error:
            yield BadFile(path, f"cannot be read: {error.strerror}")
        except ValueError as error:
            yield BadFile(path, str(error))
        else:
            yield TruthImage(number, f"{number}.jpg", height, width, _masks(partitions))


def _masks(partitions: Sequence[NDArray[np.integer[Any]]]) -> tuple[TruthMask, ...]:
    """The regions of all annotators, equal ones once, in the order of annotators and labels."""
    drawn: dict[str, TruthMask] = {}
    for annotator, partition in enumerate(partitions, start=1):
        for region in regions_of_map(partition):
            if region.value != _UNLABELED:
                mask = TruthMask(
                    region.segmentation, region.area_px, region.bbox_xywh, _REGION.id, extra={"annotator": annotator}
                )
                drawn.setdefault(region.segmentation["counts"], mask)
    return tuple(drawn.values())


def _read_partitions(path: Path) -> list[NDArray[np.integer[Any]]]:
    """The region map [H, W] of each annotator.

    Raises:
        OSError: if its folder may not be read.
        ValueError: if the file is missing or damaged, or not in BSDS500's layout.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise ValueError("is missing")
    try:
        content = loadmat(str(path), variable_names=["groundTruth"])
    except (
        Exception
    ) as error:  # SciPy raises zlib's, struct's and other errors, whatever a damaged file makes it trip over
        raise ValueError(
            f"cannot be read as a .mat file ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error
    try:
        partitions = [np.asarray(annotator["Segmentation"].flat[0]) for annotator in content["groundTruth"].flat]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError("holds no cell groundTruth of structs with a Segmentation") from error
    if not partitions or any(p.ndim != 2 or not p.size or p.dtype.kind not in "ui" for p in partitions):
        raise ValueError("holds a Segmentation that is no map of whole numbers, or none at all")
    return partitions
