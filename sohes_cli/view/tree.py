"""Forest of one record as a tree in the terminal, in the colors of the overlay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from sohes_cli.view.selection import Color, count_masks, mask_colors, percentage, select_masks, tree_order

if TYPE_CHECKING:
    from sohes_cli.structures import Annotation, LabelRecord

__all__ = ["forest_tree"]


def forest_tree(record: LabelRecord, max_masks: int) -> Tree:
    """Lay out the best `max_masks` masks of a record as a tree, larger ones first.

    Returns:
        A tree with the image at its root and one node per mask: color, id, share of the image, score and box (left,
            top,
        width x height).
    """
    shown = select_masks(record, max_masks)
    colors = mask_colors(shown)
    roots, children = tree_order(shown)
    size = f"  {record.width} x {record.height} px, {count_masks(record, shown)}"
    tree = Tree(Text.assemble((record.file_name, "bold"), size), guide_style="dim")
    todo = [(tree, node) for node in reversed(roots)]
    while todo:
        parent, node = todo.pop()
        branch = parent.add(_line(shown.annotations[node], colors[node]))
        todo += [(branch, child) for child in reversed(children[node])]
    return tree


def _line(annotation: Annotation, color: Color) -> Text:
    left, top, width, height = annotation.bbox_xywh
    return Text.assemble(
        ("██", f"rgb({color[0]},{color[1]},{color[2]})"),
        (f" #{annotation.id}", "bold"),
        f"  {percentage(annotation)}  score {annotation.score:.2f}",
        (f"  at {left},{top}  {width} x {height}", "dim"),
        no_wrap=True,
    )
