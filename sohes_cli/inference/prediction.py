"""Prediction of one photograph: masks, scores and forest, with conversions to other formats.

Masks are held as packed bits at the image's size, or at a working size for a huge image; everything given out is at its
full size.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_cli.errors import SohesError
from sohes_cli.labels.records import label_record
from sohes_cli.masks.packed import PackedMasks, nearest_pixels
from sohes_cli.structures import Forest, LabelRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Prediction"]


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """N masks of one photograph, best first.

    `len(prediction)` is N; `print(prediction)` sums it up.

    Args:
        name: the photograph's file name.
        height: H, rows of the photograph at its full size, after its EXIF rotation.
        width: W, its columns.
        packed: the masks as packed bits, at the full size or a smaller working size.
        scores: how probably each is an entity with this mask, float64 [N] in [0, 1], descending.
        forest: which mask is part of which, by index.
        ancestor_probabilities: [i, j] is what the ancestor head gives for mask i being an ancestor of mask j, float32
            [N, N].
    """

    name: str
    height: int
    width: int
    packed: PackedMasks
    scores: NDArray[np.float64]
    forest: Forest
    ancestor_probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        depth = max(self.levels, default=-1) + 1
        return (
            f"Prediction({self.name!r}, {self.height} x {self.width}, {len(self)} masks, "
            f"{len(self.forest.roots)} roots, {depth} levels)"
        )

    @property
    def masks(self) -> NDArray[np.bool_]:
        """The masks at the full size, bool [N, H, W]; made at every access, so keep it in a variable."""
        rows, columns = nearest_pixels(self.packed.height, self.height), nearest_pixels(self.packed.width, self.width)
        masks = np.empty((len(self), self.height, self.width), bool)
        for full, mask in zip(masks, self.packed, strict=True):
            full[:] = mask if mask.shape == full.shape else mask[rows[:, None], columns]
        return masks

    @property
    def boxes_xyxy(self) -> NDArray[np.int64]:
        """Left, top, right and bottom of each mask in pixels of the full size, int64 [N, 4], the last two exclusive."""
        x, y = _first_pixels(self.packed.width, self.width), _first_pixels(self.packed.height, self.height)
        left, top, right, bottom = self.packed.boxes_xyxy().T
        return np.stack([x[left], y[top], x[right], y[bottom]], axis=1)

    @property
    def parents(self) -> tuple[int, ...]:
        """For each mask the index of the mask that it is a part of, -1 for a root."""
        return self.forest.parents

    @property
    def levels(self) -> tuple[int, ...]:
        """For each mask its depth in the forest, 0 for a root."""
        return tuple(self.forest.levels)

    def select(self, indices: NDArray[Any] | list[int] | slice) -> Prediction:
        """Keep some masks; one whose parent is not kept becomes a part of its nearest kept ancestor, or a root.

        Args:
            indices: whatever indexes an array of N entries: numbers, a slice, or bool [N]. Order and repetition do not
                count.

        Returns:
            The chosen masks, best first.
        """
        chosen = np.unique(np.arange(len(self))[indices])
        position = {int(old): new for new, old in enumerate(chosen)}
        kept_ancestors = ([position[a] for a in self.forest.ancestors(int(i)) if a in position] for i in chosen)
        forest = Forest(tuple(above[0] if above else -1 for above in kept_ancestors))
        probabilities = self.ancestor_probabilities[np.ix_(chosen, chosen)]
        return Prediction(
            self.name, self.height, self.width, self.packed[chosen], self.scores[chosen], forest, probabilities
        )

    def to_record(self) -> LabelRecord:
        """Convert to a label record: RLE at full size, ids from 1."""
        return label_record(self.name, self.height, self.width, self.packed, self.scores, self.forest)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """The masks as COCO's annotations, which are also its results: the one category is 1.

        Args:
            image_id: of this photograph in the file that they are for.

        Returns:
            One dict a mask, ready for JSON: besides COCO's own keys `score`, `level` and `parent`, an id within this
            list or None.
        """
        common = {"image_id": image_id, "category_id": 1, "iscrowd": 0}
        return [{**annotation, **common} for annotation in self.to_record().to_json()["annotations"]]

    def to_detections(self) -> Any:
        """The masks as `supervision.Detections`, for its annotators and trackers.

        Returns:
            xyxy float32 [N, 4], mask bool [N, H, W], confidence float32 [N], class_id 0, and `data` with `parent` (an
            index, -1 for a root) and `level`, int64 [N].

        Raises:
            SohesError: if the package supervision is not installed, or lacks a package itself.
        """
        try:
            supervision = import_module("supervision")
        except ImportError as error:
            message = f"Detections are a structure of the package supervision, which cannot be imported ({error})."
            raise SohesError(message, "Install it: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.astype(np.float32),
            mask=self.masks,
            confidence=self.scores.astype(np.float32),
            class_id=np.zeros(len(self), np.int64),
            data={"parent": np.array(self.parents, np.int64), "level": np.array(self.levels, np.int64)},
        )


def _first_pixels(source: int, target: int) -> NDArray[np.int64]:
    """First target pixel of each source pixel, and the number of target pixels, int64 [source + 1]."""
    return np.searchsorted(nearest_pixels(source, target), np.arange(source + 1)).astype(np.int64)
