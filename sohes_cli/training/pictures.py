"""Picture of a run: photographs, each beside its labels and the predictions of a step."""

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

_MAX_MASKS = 60
_MIN_SCORE = 0.3
_SIDE = 256  # of a photograph in the picture, in pixels


def draw_beside_labels(
    shown: ValidationExamples, predict: Callable[[Example], LabelRecord]
) -> NDArray[np.uint8] | None:
    """Draw a row per photograph: the photograph, its labels and its predictions.

    Returns:
        RGB, uint8 [H, W, 3]; None if no photograph can be read.
    """
    rows = []
    for i in range(len(shown)):
        try:
            example = shown[i]
        except SohesError:  # reported where it is trained on
            continue
        pixels = example.pixels.numpy()
        overlays = [overlay(pixels, record, _MAX_MASKS) for record in (labels_of(example), predict(example))]
        rows.append(np.concatenate([_fit(picture) for picture in (pixels, *overlays)], axis=1))
    return np.concatenate(rows) if rows else None


def predicted_labels(
    predict: Callable[..., Output], network: EntityModel, device: torch.device, example: Example
) -> LabelRecord:
    """Predict the confident masks of a photograph by `Learner.predict`, and their forest by the ancestor head."""
    batch = collate([example], STRIDE).to(device)
    output, size = predict(batch.pixels, batch.sizes), batch.sizes[0]
    found = find_masks(output, 0, size, size, SegmentConfig(min_score=_MIN_SCORE))
    probabilities = ancestor_probabilities(network.ancestor_head, output, 0, found.queries)
    return label_record(example.name, *size, found.masks, found.scores, head_forest(probabilities, found.masks))


def labels_of(example: Example) -> LabelRecord:
    """Convert the labels of an example to a record, with score 1 for all."""
    height, width = example.pixels.shape[:2]
    bits = np.unpackbits(example.masks.numpy(), axis=1, count=height * width, bitorder="little")
    masks = PackedMasks.from_masks(bits.reshape(-1, width, height).transpose(0, 2, 1).astype(bool))
    forest = Forest(tuple(example.parents.tolist()))
    return label_record(example.name, height, width, masks, np.ones(len(masks)), forest)


def _fit(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale a picture [H, W, 3] to fit a white square."""
    scale = _SIDE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    square = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return square
