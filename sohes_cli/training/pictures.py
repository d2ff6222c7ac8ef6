"""A picture of a run: a few photographs, each beside its labels and beside what is found at this step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from sohes_cli.data.batch import collate
from sohes_cli.errors import SohesError
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.forest import head_forest
from sohes_cli.inference.postprocess import ancestor_probabilities, find_masks
from sohes_cli.labels.records import label_record
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.model.config import STRIDE
from sohes_cli.structures import Forest, LabelRecord
from sohes_cli.view.overlay import overlay

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from sohes_cli.data.batch import Example
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.model.output import Output
    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["draw_beside_labels", "labels_of", "predicted_labels"]

_MASKS = 60
_LEAST_SCORE = 0.3
_SIDE = 256  # of a photograph in the picture


def draw_beside_labels(shown: ValidationExamples, found: Callable[[Example], LabelRecord]) -> NDArray[np.uint8] | None:
    """Draw a row for each photograph: itself, its labels, and what is found in it.

    Args:
        shown: the photographs.
        found: finds masks in a photograph, best first.

    Returns:
        RGB, uint8 [H, W, 3]; None if no photograph can be read.
    """
    rows = []
    for i in range(len(shown)):
        try:
            example = shown[i]
        except SohesError:  # it is reported where it is trained on
            continue
        pixels = example.pixels.numpy()
        pictures = (pixels, overlay(pixels, labels_of(example), _MASKS), overlay(pixels, found(example), _MASKS))
        rows.append(np.concatenate([_fitted(picture) for picture in pictures], axis=1))
    return np.concatenate(rows) if rows else None


def predicted_labels(
    predict: Callable[..., Output], network: EntityModel, device: torch.device, example: Example
) -> LabelRecord:
    """The masks of which a model is sure, with the forest of its ancestor head.

    Args:
        predict: asks the model, see `Learner.predict`.
        network: the model, for its ancestor head.
        device: of both.
        example: a photograph.
    """
    batch = collate([example], STRIDE).to(device)
    output, size = predict(batch.pixels, batch.sizes), batch.sizes[0]
    found = find_masks(output, 0, size, size, SegmentConfig(min_score=_LEAST_SCORE))
    probabilities = ancestor_probabilities(network.ancestor_head, output, 0, found.queries)
    return label_record(example.name, *size, found.masks, found.scores, head_forest(probabilities, found.masks))


def labels_of(example: Example) -> LabelRecord:
    """The labels of an example, all of one score."""
    height, width = example.pixels.shape[:2]
    bits = np.unpackbits(example.masks.numpy(), axis=1, count=height * width, bitorder="little")
    masks = PackedMasks.from_masks(bits.reshape(-1, width, height).transpose(0, 2, 1).astype(bool))
    forest = Forest(tuple(example.parents.tolist()))
    return label_record(example.name, height, width, masks, np.ones(len(masks)), forest)


def _fitted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture scaled into a square, white around it."""
    scale = _SIDE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    square = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return square
