"""The values that travel between the steps: a label record of one image, its annotations and their forest.

Shape letters used in this package: B images, N M masks, C channels, H W pixels, h w patches,
R regions, E edges, T thresholds. H comes before W; (x, y) only in names that end in `_xy`, `_xyxy` or `_xywh`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from sohes_cli.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Annotation", "Forest", "LabelRecord", "Rle"]


class Rle(TypedDict):
    """A mask in COCO's compressed run-length encoding: `size` is [H, W], `counts` a string."""

    size: list[int]
    counts: str


@dataclass(frozen=True)
class Annotation:
    """One mask of an image.

    Args:
        id: positive, unique within its record.
        segmentation: the mask at the image's full size.
        area: pixels of the mask.
        bbox_xywh: left, top, width and height of its box, in pixels.
        score: how much the mask is to be trusted against the others, in [0, 1]; larger is better.
        level: depth in the forest, 0 for a root.
        parent: id of the annotation that this one is a part of, None for a root.
    """

    id: int
    segmentation: Rle
    area: int
    bbox_xywh: tuple[int, int, int, int]
    score: float
    level: int = 0
    parent: int | None = None


@dataclass(frozen=True)
class Forest:
    """Which mask is part of which: a parent index per node, -1 for a root.

    Args:
        parents: for each of N nodes the index of its parent, or -1.

    Raises:
        ValueError: if a parent is out of range or the pointers form a cycle.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        n = len(self.parents)
        if any(not -1 <= p < n for p in self.parents):
            raise ValueError(f"parents must lie in -1..{n - 1}")
        reached = 0
        todo = self.roots
        children = self.children
        while todo:
            reached += 1
            todo.extend(children[todo.pop()])
        if reached != n:
            raise ValueError("parents form a cycle")

    @property
    def roots(self) -> list[int]:
        """Indices of the nodes without a parent, ascending."""
        return [i for i, p in enumerate(self.parents) if p < 0]

    @property
    def children(self) -> list[list[int]]:
        """For each node the indices of its children, ascending."""
        below: list[list[int]] = [[] for _ in self.parents]
        for i, p in enumerate(self.parents):
            if p >= 0:
                below[p].append(i)
        return below

    @property
    def levels(self) -> list[int]:
        """For each node the number of its ancestors."""
        return [len(self.ancestors(i)) for i in range(len(self.parents))]

    def ancestors(self, node: int) -> list[int]:
        """Indices of the node's ancestors, the parent first."""
        chain = []
        while (node := self.parents[node]) >= 0:
            chain.append(node)
        return chain


@dataclass(frozen=True)
class LabelRecord:
    """All labels of one image, as stored in its JSON file.

    Args:
        file_name: path of the image relative to the image folder, with forward slashes.
        height: rows of the image after its EXIF rotation.
        width: columns of the image after its EXIF rotation.
        annotations: the masks, best score first; ids and parents refer to this record alone.

    Raises:
        StoreError: if an id occurs twice, a parent is missing, parents form a cycle, or a mask has another size than the image.
    """

    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...] = ()

    def __post_init__(self) -> None:
        ids = {a.id for a in self.annotations}
        if len(ids) != len(self.annotations):
            raise StoreError(f"The record of {self.file_name} holds an annotation id twice.")
        for a in self.annotations:
            if a.parent is not None and a.parent not in ids:
                raise StoreError(
                    f"The record of {self.file_name}: annotation {a.id} names a parent {a.parent} that it does not hold."
                )
            if a.segmentation["size"] != [self.height, self.width]:
                raise StoreError(
                    f"The record of {self.file_name}: annotation {a.id} has a mask of {a.segmentation['size']}, "
                    f"the image is {[self.height, self.width]}."
                )
        try:
            self.forest  # noqa: B018 - made for its check
        except ValueError as error:
            raise StoreError(f"The record of {self.file_name}: {error}.") from error

    @property
    def forest(self) -> Forest:
        """The annotations' part-of forest, by position in `annotations`."""
        position = {a.id: i for i, a in enumerate(self.annotations)}
        return Forest(tuple(-1 if a.parent is None else position[a.parent] for a in self.annotations))

    def to_json(self) -> dict[str, Any]:
        """The record in the layout of SA-1B, with `parent`, `level` and `score` added to each annotation."""
        return {
            "image": {"file_name": self.file_name, "height": self.height, "width": self.width},
            "annotations": [
                {
                    "id": a.id,
                    "segmentation": {"size": list(a.segmentation["size"]), "counts": a.segmentation["counts"]},
                    "area": a.area,
                    "bbox": list(a.bbox_xywh),
                    "score": a.score,
                    "level": a.level,
                    "parent": a.parent,
                }
                for a in self.annotations
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = "record") -> LabelRecord:
        """Read what `to_json` wrote.

        Args:
            data: the parsed JSON of one record.
            source: where it came from, for the error message.

        Raises:
            StoreError: if a key is missing, a value has the wrong type, or ids and sizes contradict each other.
        """
        try:
            image, annotations = data["image"], data["annotations"]
            return cls(
                file_name=str(image["file_name"]),
                height=int(image["height"]),
                width=int(image["width"]),
                annotations=tuple(_annotation(a) for a in annotations),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(
                f"{source} is not a label record: {error!r}.", "Delete it and run `sohes explore` again to rewrite it."
            ) from error


def _annotation(data: Mapping[str, Any]) -> Annotation:
    height, width = data["segmentation"]["size"]
    x, y, w, h = data["bbox"]
    return Annotation(
        id=int(data["id"]),
        segmentation={"size": [int(height), int(width)], "counts": str(data["segmentation"]["counts"])},
        area=int(data["area"]),
        bbox_xywh=(int(x), int(y), int(w), int(h)),
        score=float(data["score"]),
        level=int(data["level"]),
        parent=None if data["parent"] is None else int(data["parent"]),
    )
