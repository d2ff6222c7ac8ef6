"""Values that travel between the steps: the label record of an image, its annotations and their forest.

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
        id: positive, unique within the record.
        segmentation: mask at the size of the image.
        area: area in pixels.
        bbox_xywh: left, top, width and height of the bounding box in pixels.
        score: confidence in [0, 1].
        level: depth in the forest, 0 for a root.
        parent: id of the parent annotation, None for a root.
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
    """Part-of relation of N masks.

    Args:
        parents: index of each node's parent, -1 for a root.

    Raises:
        ValueError: if a parent is out of range or the pointers form a cycle.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        n = len(self.parents)
        if any(not -1 <= p < n for p in self.parents):
            raise ValueError(f"parents must lie in -1..{n - 1}")
        reached, todo, children = 0, self.roots, self.children
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
        """Indices of each node's children, ascending."""
        below: list[list[int]] = [[] for _ in self.parents]
        for i, p in enumerate(self.parents):
            if p >= 0:
                below[p].append(i)
        return below

    @property
    def levels(self) -> list[int]:
        """Number of each node's ancestors."""
        return [len(self.ancestors(i)) for i in range(len(self.parents))]

    def ancestors(self, node: int) -> list[int]:
        """Return the indices of the node's ancestors, the parent first."""
        chain = []
        while (node := self.parents[node]) >= 0:
            chain.append(node)
        return chain


@dataclass(frozen=True)
class LabelRecord:
    """Labels of one image, as stored in its JSON file.

    Args:
        file_name: path relative to the image folder, with forward slashes.
        height: rows of the image after its EXIF rotation.
        width: columns of the image after its EXIF rotation.
        annotations: masks, best score first.

    Raises:
        StoreError: if an id is repeated, a parent is missing, parents form a cycle, or a mask has another size.
    """

    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...] = ()

    def __post_init__(self) -> None:
        ids, record = {a.id for a in self.annotations}, f"The record of {self.file_name}"
        if len(ids) != len(self.annotations):
            raise StoreError(f"{record} holds an annotation id twice.")
        for a in self.annotations:
            if a.parent is not None and a.parent not in ids:
                raise StoreError(f"{record}: annotation {a.id} names a parent {a.parent} that it does not hold.")
            if (size := a.segmentation["size"]) != (image := [self.height, self.width]):
                raise StoreError(f"{record}: annotation {a.id} has a mask of {size}, the image is {image}.")
        try:
            self.forest  # noqa: B018 - raises for a cycle
        except ValueError as error:
            raise StoreError(f"{record}: {error}.") from error

    @property
    def forest(self) -> Forest:
        """Part-of forest of the annotations, by position in `annotations`."""
        position = {a.id: i for i, a in enumerate(self.annotations)}
        return Forest(tuple(-1 if a.parent is None else position[a.parent] for a in self.annotations))

    def to_json(self) -> dict[str, Any]:
        """Return the layout of SA-1B, with `parent`, `level` and `score` added to each annotation."""
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
        """Read the output of `to_json`.

        Args:
            data: parsed JSON of one record.
            source: name of the origin, for the error message.

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
            hint = "Delete it and run `sohes explore` again to rewrite it."
            raise StoreError(f"{source} is not a label record: {error!r}.", hint) from error


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
