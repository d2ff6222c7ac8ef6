"""A trained model that turns photographs into predictions: the Python API behind `sohes segment`.

from sohes_cli import Segmenter
segmenter = Segmenter.load("runs/instruct")
prediction = segmenter("photo.jpg")
prediction.masks, prediction.scores, prediction.parents

pixels -> longer side to the model's size, normalized, padded -> network -> masks -> forest

With `SegmentConfig(views=V)` the network sees the photograph V times, and the views vote on the masks (`sohes_cli.inference.voting`).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from sohes_cli.data.batch import pad_images
from sohes_cli.data.jitter import full_crop
from sohes_cli.errors import SohesError, UsageError, WeightsError
from sohes_cli.explore.images import reduced_size
from sohes_cli.explore.weights import torch_device
from sohes_cli.inference.config import SegmentConfig, own_settings
from sohes_cli.inference.forest import geometric_forest, head_forest
from sohes_cli.inference.inputs import as_photograph
from sohes_cli.inference.postprocess import LARGEST_SIDE, ancestor_probabilities, distinct_masks, find_masks, score_masks
from sohes_cli.inference.prediction import Prediction
from sohes_cli.inference.snapping import SNAPPED_SIDE, snap_masks
from sohes_cli.inference.voting import View, ViewMasks, elect, on_grid, views_of
from sohes_cli.model.config import MASK_STRIDE, STRIDE
from sohes_cli.model.files import load_model
from sohes_cli.model.location import model_file
from sohes_cli.model.pixels import network_input
from sohes_cli.pretrain.networks import use_fused_attention
from sohes_cli.processes import available_cores
from sohes_cli.training.distribution import resolve_precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sohes_cli.explore.images import Photograph
    from sohes_cli.inference.inputs import ImageInput
    from sohes_cli.inference.postprocess import FoundMasks
    from sohes_cli.model.output import Output
    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["Segmenter"]

_SIZES = (32, 8192)
_DETAIL = 1.5  # pixels decoded for one that the network sees, a side


class _Shown(NamedTuple):
    """One view of a batch: what the network said of it, and each photograph's (height, width) in its input."""

    view: View
    output: Output
    sizes: list[tuple[int, int]]


class Segmenter:
    """Masks, scores and the forest of any photograph by a trained model.

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
        self.views = views_of(config.views)
        self.working_size = max(LARGEST_SIDE, math.ceil(_DETAIL * image_size * max(view.scale for view in self.views)))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        image_size: int | None = None,
        **settings: Any,
    ) -> Segmenter:
        """Read a model file.

        Args:
            path: the folder of a run of `sohes train`, its model file, or `bundled`; None for `./runs/correct`, `./runs/instruct` or else
                the bundled model.
            device: see the class.
            precision: see the class.
            image_size: pixels of the longer side; None for the model's own size, or else the one that it was trained at.
            settings: of `SegmentConfig`; the others are the model's own, which a bundled one has, or else the defaults.

        Raises:
            SohesError: if there is no model, it does not run here, or a setting is wrong.
            WeightsError: if the file is damaged or of another kind.
        """
        file = model_file(path)
        model, description = load_model(file)
        size, config = own_settings(description, image_size, settings)
        return cls(model, size or _trained_size(description, file), config, device=device, precision=precision)

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
        with self._memory_errors(len(photographs)):
            shown = [self._shown(photographs, view) for view in self.views]
            if len(photographs) == 1:
                return [self._prediction(photographs[0], shown, 0)]
            with ThreadPoolExecutor(min(len(photographs), available_cores())) as threads:
                return list(threads.map(lambda i: self._prediction(photographs[i], shown, i), range(len(photographs))))

    @contextmanager
    def _memory_errors(self, images: int) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            message = f"The memory of {self.device} does not suffice for {images} images of {self.image_size} pixels."
            raise SohesError(message, "Lower --batch-size, --size or --views, or use --device cpu.") from error

    @torch.no_grad()
    def _shown(self, photographs: list[Photograph], view: View) -> _Shown:
        """What the network says of a view of some photographs."""
        image_size = round(self.image_size * view.scale)
        crops = [replace(full_crop(photo.height, photo.width, image_size), flipped=view.mirrored) for photo in photographs]
        sizes = [(crop.height, crop.width) for crop in crops]
        images = [torch.from_numpy(crop.cut(photo.pixels)) for crop, photo in zip(crops, photographs, strict=True)]
        pixels = network_input(pad_images(images, STRIDE).to(self.device), sizes)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return _Shown(view, self.model(pixels, sizes), sizes)

    def _prediction(self, photo: Photograph, shown: list[_Shown], image: int) -> Prediction:
        found, probabilities = self._elected(photo, shown, image) if len(shown) > 1 else self._found(photo, shown[0], image)
        by_head = self.config.forest == "head"
        forest = head_forest(probabilities, found.masks) if by_head else geometric_forest(found.masks)
        return Prediction(photo.name, photo.height, photo.width, found.masks, found.scores, forest, probabilities)

    def _found(self, photo: Photograph, shown: _Shown, image: int) -> tuple[FoundMasks, NDArray[np.float32]]:
        """The masks of the only view, and their ancestor probabilities."""
        found = find_masks(shown.output, image, shown.sizes[image], self._drawn_size(photo), self.config)
        found = self._refined(found, photo)
        return found, ancestor_probabilities(self.model.ancestor_head, shown.output, image, found.queries)

    def _elected(self, photo: Photograph, shown: list[_Shown], image: int) -> tuple[FoundMasks, NDArray[np.float32]]:
        """The masks on which several views agree, and their ancestor probabilities."""
        rows, columns = (-(-max(view.sizes[image][axis] for view in shown) // MASK_STRIDE) for axis in (0, 1))
        elected = elect([self._view_masks(view, image, (rows, columns)) for view in shown])
        size = (MASK_STRIDE * rows, MASK_STRIDE * columns)
        found = distinct_masks(elected.logits, elected.scores, size, self._drawn_size(photo), self.config)
        found = self._refined(found, photo)
        return found, elected.ancestors[np.ix_(found.queries, found.queries)]

    @torch.no_grad()
    def _view_masks(self, shown: _Shown, image: int, grid: tuple[int, int]) -> ViewMasks:
        """What one of several views shows of a photograph, without masks that no cell of the grid shows."""
        size = shown.sizes[image]
        logits, scores, queries = score_masks(shown.output, image, size, self.config.min_score)
        logits = on_grid(logits, size, grid, mirrored=shown.view.mirrored)
        fits = np.flatnonzero((logits > 0).any(2).any(1).cpu().numpy() & (scores > 0) & (scores >= self.config.min_score))
        ancestors = ancestor_probabilities(self.model.ancestor_head, shown.output, image, queries.cpu().numpy()[fits])
        return ViewMasks(logits[torch.from_numpy(fits).to(logits.device)], scores[fits], ancestors)

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
