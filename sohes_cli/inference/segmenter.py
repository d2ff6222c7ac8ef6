"""A trained model that turns photographs into predictions: the Python API behind `sohes segment`.

from sohes_cli import Segmenter
segmenter = Segmenter.load("runs/instruct")
prediction = segmenter("photo.jpg")
prediction.masks, prediction.scores, prediction.parents

pixels -> longer side to the model's size, normalized, padded -> network -> masks -> forest

After `Segmenter.load(path, views=V)` the network sees each photograph V times, and the views vote on its masks
(`sohes_cli.inference.voting`).
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sohes_cli.data.batch import pad_images
from sohes_cli.data.jitter import full_crop
from sohes_cli.errors import SohesError, UsageError, WeightsError
from sohes_cli.images.reading import reduced_size
from sohes_cli.inference.config import SIZES, SegmentConfig, is_size, own_settings
from sohes_cli.inference.forest import geometric_forest, head_forest
from sohes_cli.inference.inputs import as_photograph
from sohes_cli.inference.postprocess import LARGEST_SIDE, ancestor_probabilities, distinct_masks, find_masks
from sohes_cli.inference.prediction import Prediction
from sohes_cli.inference.snapping import SNAPPED_SIDE, snap_masks
from sohes_cli.inference.voting import View, ViewMasks, common_grid, elect, view_masks, views_of
from sohes_cli.model.config import MASK_STRIDE, STRIDE
from sohes_cli.model.files import load_model
from sohes_cli.model.location import model_file
from sohes_cli.model.pixels import network_input
from sohes_cli.runs.devices import resolve_precision, torch_device
from sohes_cli.runs.processes import available_cores, in_threads
from sohes_cli.vit.build import use_fused_attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sohes_cli.data.jitter import Crop
    from sohes_cli.images.reading import Photograph
    from sohes_cli.inference.inputs import ImageInput
    from sohes_cli.inference.postprocess import FoundMasks
    from sohes_cli.model.output import Output
    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["Segmenter"]

_DETAIL = 1.5  # pixels decoded for one that the network sees, a side


class Segmenter:
    """Masks, scores and the forest of any photograph by a trained model.

    Args:
        model: the network; it is moved to the device.
        image_size: pixels of the longer side of a photograph as the network sees it; in some of several views it is
            0.75 to 1.5 times that.
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
        if not is_size(image_size):
            raise UsageError(
                f"The size of the image must be from {SIZES[0]} to {SIZES[1]} pixels, not {image_size}.",
                "Change --size.",
            )
        if precision not in ("auto", "fp32", "bf16"):
            raise UsageError(f"The precision must be auto, fp32 or bf16, not {precision!r}.")
        self.device = torch_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        on_cpu = self.device.type == "cpu"
        self.precision = resolve_precision(precision, on_cpu)
        self.model = model.eval().to(self.device)
        use_fused_attention(self.model.backbone, True)  # also on a CPU, for there is no backward pass
        self.image_size, self.config = image_size, config
        self._views = views_of(config.views)
        self._largest = round(image_size * max(view.scale for view in self._views))
        self.working_size = max(LARGEST_SIDE, math.ceil(_DETAIL * self._largest))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        image_size: int | None = None,
        config: SegmentConfig | None = None,
        **settings: Any,
    ) -> Segmenter:
        """Read a model file.

        Args:
            path: the folder of a run of `sohes train`, its model file, or `bundled`; None for `./runs/correct`,
                `./runs/instruct` or else the bundled model.
            device: see the class.
            precision: see the class.
            image_size: pixels of the longer side; None for the model's own size, or else the one that it was trained
                at.
            config: which masks are kept, and whose forest they get; None for the model's own settings, which a bundled
                one has, or else the defaults.
            settings: some of these alone, as in `Segmenter.load("bundled", views=1)`.

        Raises:
            SohesError: if there is no model, it does not run here, or a setting is wrong.
            WeightsError: if the file is damaged or of another kind.
        """
        file = model_file(path)
        model, description = load_model(file)
        own = own_settings(description, file)
        own_size = own.pop("image_size", None)
        size = image_size or own_size or _trained_size(description, file)
        config = SegmentConfig(**{**own, **settings}) if config is None else replace(config, **settings)
        return cls(model, size, config, device=device, precision=precision)

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
        """Segment several photographs, in one pass a view; their predictions are those that each would have alone, up
        to rounding.

        Raises:
            ImageError: if a file cannot be read.
            SohesError: if the device's memory does not suffice, or the network says nothing finite.
        """
        photographs = [as_photograph(image, self.working_size) for image in images]
        if not photographs:
            return []
        with self._memory_errors(len(photographs)):
            if len(self._views) > 1:
                return self._elected(photographs)
            output, sizes = self._output(photographs, self._views[0])
            return in_threads(
                lambda i: self._found(photographs[i], output, i, sizes[i]), range(len(photographs)), available_cores()
            )

    @contextmanager
    def _memory_errors(self, images: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            message = (
                f"The memory of {self.device} does not suffice for {images} images of up to "
                f"{self._largest} x {self._largest} pixels."
            )
            views = ", --views" if len(self._views) > 1 else ""
            raise SohesError(message, f"Lower --batch-size{views} or --size, or use --device cpu.") from error

    @torch.no_grad()
    def _output(self, photographs: list[Photograph], view: View) -> tuple[Output, list[tuple[int, int]]]:
        """Run the network on a view of some photographs; returns its output and their (height, width) in it."""
        crops = [self._crop(photo, view) for photo in photographs]
        sizes = [(crop.height, crop.width) for crop in crops]
        images = [torch.from_numpy(crop.cut(photo.pixels)) for crop, photo in zip(crops, photographs, strict=True)]
        pixels = network_input(pad_images(images, STRIDE).to(self.device), sizes)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(pixels, sizes), sizes

    def _crop(self, photo: Photograph, view: View) -> Crop:
        return replace(full_crop(photo.height, photo.width, round(self.image_size * view.scale)), flipped=view.mirrored)

    def _found(self, photo: Photograph, output: Output, image: int, size: tuple[int, int]) -> Prediction:
        """The masks that the network sees in the photograph as it is."""
        found = self._refined(find_masks(output, image, size, self._drawn_size(photo), self.config), photo)
        return self._prediction(
            photo, found, ancestor_probabilities(self.model.ancestor_head, output, image, found.queries)
        )

    def _elected(self, photographs: list[Photograph]) -> list[Prediction]:
        """Predict the masks on which several views agree."""
        sizes = [[self._view_size(photo, view) for view in self._views] for photo in photographs]
        grids = [common_grid(views) for views in sizes]
        found: list[list[ViewMasks]] = [[] for _ in photographs]
        for number, view in enumerate(self._views):
            output, _ = self._output(photographs, view)
            for image, (grid, masks) in enumerate(zip(grids, found, strict=True)):
                size = sizes[image][number]
                masks.append(
                    view_masks(output, image, size, grid, view, self.model.ancestor_head, self.config.min_score)
                )

        def predict(image: int) -> Prediction:
            elected, size = elect(found[image]), tuple(MASK_STRIDE * cells for cells in grids[image])
            photo = photographs[image]
            drawn = self._drawn_size(photo)
            masks = distinct_masks(elected.logits, elected.scores, (size[0], size[1]), drawn, self.config)
            masks = self._refined(masks, photo)
            return self._prediction(photo, masks, elected.ancestors[np.ix_(masks.queries, masks.queries)])

        return in_threads(predict, range(len(photographs)), available_cores())

    def _view_size(self, photo: Photograph, view: View) -> tuple[int, int]:
        crop = self._crop(photo, view)
        return crop.height, crop.width

    def _prediction(self, photo: Photograph, found: FoundMasks, probabilities: NDArray[np.float32]) -> Prediction:
        by_head = self.config.forest == "head"
        forest = head_forest(probabilities, found.masks) if by_head else geometric_forest(found.masks)
        return Prediction(photo.name, photo.height, photo.width, found.masks, found.scores, forest, probabilities)

    def _drawn_size(self, photo: Photograph) -> tuple[int, int]:
        """Height and width at which masks are drawn, as far as a huge photograph does not limit them."""
        full = (photo.height, photo.width)
        return full if self.config.refine == "none" else reduced_size(*full, SNAPPED_SIDE)

    def _refined(self, found: FoundMasks, photo: Photograph) -> FoundMasks:
        return found if self.config.refine == "none" else snap_masks(found, photo.pixels, self.config)


def _trained_size(description: dict[str, Any], file: Path) -> int:
    size = description.get("image_size")
    if not isinstance(size, int):
        raise WeightsError(f"{file} does not say at which image size it was trained.", "Give the size with --size.")
    return size
