"""Pairs of annotated and predicted images: by id, by file name, or by the stem of the name.

A result file has image ids only. A label folder and an annotation file are paired by file name, because ids are each
file's own. If no name agrees, names without folder and suffix are compared (`val2017/000139.jpg` is `000139.png`),
provided that these are unique on both sides. Unmatched images are reported; if no image matches, an error says so,
since every score would be 0.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sohes_cli.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sohes_cli.labels.sources import ImageEntry, LabelSource

__all__ = ["ImageMatch", "Pairing", "pair_images"]

_SHOWN = 3


class ImageMatch(StrEnum):
    """Key by which images are paired."""

    auto = "auto"
    id = "id"
    name = "name"
    stem = "stem"


@dataclass(frozen=True)
class Pairing:
    """Partners of the annotated images.

    Args:
        by: the key that agrees; never `auto`.
        partners: for each image of the ground truth its index in the predictions, or -1.
        missing: images of the ground truth without predictions.
        unknown: images of the predictions that are not in the ground truth.
    """

    by: ImageMatch
    partners: list[int]
    missing: list[ImageEntry]
    unknown: list[ImageEntry]


def pair_images(truth: LabelSource, predicted: LabelSource, match: ImageMatch = ImageMatch.auto) -> Pairing:
    """Pair the images of an annotation file with those of any source.

    Raises:
        UsageError: if a source lacks the key `match`.
        DatasetError: if no image has a partner, or stems are compared and one occurs twice.
    """
    if match is ImageMatch.auto:
        match = ImageMatch.id if predicted.kind == "result file" else ImageMatch.name
        if match is ImageMatch.name and not {i.file_name for i in truth.images} & {
            i.file_name for i in predicted.images
        }:
            match = ImageMatch.stem
    keys, predicted_keys = _keys(truth, match), _keys(predicted, match)
    position = {key: i for i, key in enumerate(predicted_keys)}
    partners = [position.get(key, -1) for key in keys]
    found = set(partners)
    if found <= {-1}:
        raise _nothing_shared(truth, predicted, match)
    missing = [image for image, partner in zip(truth.images, partners, strict=True) if partner < 0]
    return Pairing(match, partners, missing, [image for i, image in enumerate(predicted.images) if i not in found])


def _keys(source: LabelSource, match: ImageMatch) -> list[Hashable]:
    if match is ImageMatch.id:
        if source.kind == "label folder":
            raise UsageError(f"{source.path} has no image ids, only file names.", "Use --match name or stem.")
        return [image.id for image in source.images]
    if source.kind == "result file":
        raise UsageError(f"{source.path} has no file names, only image ids.", "Use --match id.")
    if match is ImageMatch.name:
        return [image.file_name for image in source.images]
    stems: list[Hashable] = [PurePosixPath(str(image.file_name)).stem for image in source.images]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        message = f"{source.path} has several images called {twice[0]!r} in different folders."
        raise DatasetError(message, "Name them alike on both sides and use --match name.")
    return stems


def _nothing_shared(truth: LabelSource, predicted: LabelSource, match: ImageMatch) -> DatasetError:
    if not predicted.images:
        return DatasetError(f"{predicted.path} holds no predictions.", "Run `sohes explore` or your model first.")
    if not truth.images:
        return DatasetError(f"{truth.path} holds no images.", "Give the annotation file of your images with --gt.")
    key = "image id" if match is ImageMatch.id else "file name"
    return DatasetError(
        f"No {key} of {predicted.path} is in {truth.path}: {_shown(predicted, match)} against {_shown(truth, match)}.",
        "Predictions must be of the images of the ground truth, under the same ids or names; --match says what is "
        "compared.",
    )


def _shown(source: LabelSource, match: ImageMatch) -> str:
    values = [image.id if match is ImageMatch.id else image.file_name for image in source.images[:_SHOWN]]
    return ", ".join(map(repr, values)) + (", ..." if len(source.images) > _SHOWN else "")
