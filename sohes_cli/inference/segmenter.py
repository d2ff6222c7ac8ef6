"""A trained model that turns photographs into predictions: the Python API behind `sohes segment`.

from sohes_cli import Segmenter
segmenter = Segmenter.load("runs/instruct")
prediction = segmenter("photo.jpg")
prediction.masks, prediction.scores, prediction.parents

pixels -> longer side to the model's size, normalized, padded -> network -> masks -> forest
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from sohes_cli.data.batch import pad_images
from sohes_cli.data.jitter import full_crop
from sohes_cli.errors import SohesError, UsageError, WeightsError
from sohes_cli.explore.images import reduced_size
from sohes_cli.explore.weights import torch_device
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.forest import geometric_forest, head_forest
from sohes_cli.inference.inputs import as_photograph
from sohes_cli.inference.postprocess import LARGEST_SIDE, ancestor_probabilities, find_masks
from sohes_cli.inference.prediction import Prediction
from sohes_cli.inference.snapping import SNAPPED_SIDE, snap_masks
from sohes_cli.model.config import STRIDE
from sohes_cli.model.files import load_model
from sohes_cli.model.location import model_file
from sohes_cli.model.pixels import network_input
from sohes_cli.pretrain.networks import use_fused_attention
from sohes_cli.processes import available_cores
from sohes_cli.training.distribution import resolve_precision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from sohes_cli.explore.images import Photograph
    from sohes_cli.inference.inputs import ImageInput
    from sohes_cli.inference.postprocess import FoundMasks
    from sohes_cli.model.output import Output
    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["Segmenter"]

_SIZES = (32, 8192)
_DETAIL = 1.5  # pixels decoded for one that the network sees, a side


class Segmenter:
    """Masks, scores and the forest of any photograph in one pass of a trained model.

    Args:
        model: the network; it is moved to the device.
        image_size: pixels of the longer side of a photograph as the network sees it.
        config: which masks are kept, and whose forest they get.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` for a GPU if there is one.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU that has it and on a CPU with its instructions, else fp32.

    Attributes:
        working_size: square root of the pixels to which a file is reduced when it is read.

    Raises:
        UsageError: if the device is not there, the precision unknown, or the size not from 32 to 8192.
    """

    def __init__(
        self,
        model: EntityModel,
        image_size: int,
        config: SegmentConfig = SegmentConfig(),  # noqa: B008 (frozen)
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        if not _SIZES[0] <= image_size <= _SIZES[1]:
            raise UsageError(f"The size of the image must be from {_SIZES[0]} to {_SIZES[1]} pixels, not {image_size}.", "Change --size.")
        if precision not in ("auto", "fp32", "bf16"):
            raise UsageError(f"The precision must be auto, fp32 or bf16, not {precision!r}.")
        self.device = torch_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        on_cpu = self.device.type == "cpu"
        self.precision = resolve_precision(precision, on_cpu)
        self.model = model.eval().to(self.device)
        use_fused_attention(self.model.backbone, True)  # also on a CPU, for there is no backward pass
        self.image_size, self.config = image_size, config
        self.working_size = max(LARGEST_SIDE, math.ceil(_DETAIL * image_size))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        image_size: int | None = None,
        config: SegmentConfig = SegmentConfig(),  # noqa: B008 (frozen)
    ) -> Segmenter:
        """Read a model file.

        Args:
            path: the folder of a run of `sohes train`, its model file, or `bundled`; None for `./runs/correct`, `./runs/instruct` or else
                the bundled model.
            device: see the class.
            precision: see the class.
            image_size: pixels of the longer side; None for the size that the model was trained at.
            config: which masks are kept, and whose forest they get.

        Raises:
            SohesError: if there is no model, or it does not run here.
            WeightsError: if the file is damaged or of another kind.
        """
        file = model_file(path)
        model, description = load_model(file)
        return cls(model, image_size or _trained_size(description, file), config, device=device, precision=precision)

    def __call__(self, image: ImageInput) -> Prediction:
        """Segment one photograph.

        Args:
            image: its path, a Pillow image, or RGB as uint8 [H, W, 3].

        Raises:
            ImageError: if a file cannot be read.
            WeightsError: if the network says nothing finite.
        """
        return self.segment_batch([image])[0]

    def segment_batch(self, images: Sequence[ImageInput]) -> list[Prediction]:
        """Segment several photographs in one pass; their predictions are those that each would have alone, up to rounding.

        Raises:
            ImageError: if a file cannot be read.
            SohesError: if the device's memory does not suffice, or the network says nothing finite.
        """
        photographs = [as_photograph(image, self.working_size) for image in images]
        if not photographs:
            return []
        crops = [full_crop(photo.height, photo.width, self.image_size).cut(photo.pixels) for photo in photographs]
        output, sizes = self._output(crops)
        if len(photographs) == 1:
            return [self._prediction(photographs[0], output, 0, sizes[0])]
        with ThreadPoolExecutor(min(len(photographs), available_cores())) as threads:
            return list(threads.map(lambda i: self._prediction(photographs[i], output, i, sizes[i]), range(len(photographs))))

    @torch.no_grad()
    def _output(self, images: list[NDArray[np.uint8]]) -> tuple[Output, list[tuple[int, int]]]:
        """What the network says of images at its own size, and these sizes."""
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        padded = pad_images([torch.from_numpy(image) for image in images], STRIDE)
        try:
            pixels = network_input(padded.to(self.device), sizes)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return self.model(pixels, sizes), sizes
        except torch.OutOfMemoryError as error:
            message = (
                f"The memory of {self.device} does not suffice for {len(images)} images of {padded.shape[1]} x {padded.shape[2]} pixels."
            )
            raise SohesError(message, "Lower --batch-size or --size, or use --device cpu.") from error

    def _masks(self, photo: Photograph, output: Output, image: int, size: tuple[int, int]) -> FoundMasks:
        if self.config.refine == "none":
            return find_masks(output, image, size, (photo.height, photo.width), self.config)
        found = find_masks(output, image, size, reduced_size(photo.height, photo.width, SNAPPED_SIDE), self.config)
        return snap_masks(found, photo.pixels, self.config)

    def _prediction(self, photo: Photograph, output: Output, image: int, size: tuple[int, int]) -> Prediction:
        found = self._masks(photo, output, image, size)
        probabilities = ancestor_probabilities(self.model.ancestor_head, output, image, found.queries)
        by_head = self.config.forest == "head"
        forest = head_forest(probabilities, found.masks) if by_head else geometric_forest(found.masks)
        return Prediction(photo.name, photo.height, photo.width, found.masks, found.scores, forest, probabilities)


def _trained_size(description: dict[str, Any], file: Path) -> int:
    size = description.get("image_size")
    if not isinstance(size, int):
        raise WeightsError(f"{file} does not say at which image size it was trained.", "Give the size with --size.")
    return size
