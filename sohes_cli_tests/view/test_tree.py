"""The forest in the terminal: a line per mask, in the order and depth of the forest, with its figures and its color."""

from __future__ import annotations

import io
import re

from rich.console import Console

from sohes_cli.structures import Annotation, LabelRecord
from sohes_cli.view.selection import mask_colors
from sohes_cli.view.tree import forest_tree


def annotate(i, parent=None, area=100, score=0.5, box=(1, 2, 3, 4)):
    return Annotation(i, {"size": [50, 40], "counts": "0"}, area, box, score, 0, parent)


RECORD = LabelRecord(
    "album [1]/a.jpg",
    50,
    40,
    (
        annotate(1, area=300, score=0.91),
        annotate(2, 1, area=20, score=0.25, box=(5, 6, 7, 8)),
        annotate(3, 1, area=90),
        annotate(4, 3, area=1),
        annotate(9, area=1000),
    ),
)


def printed(tree, color=False):
    console = Console(
        file=io.StringIO(),
        width=200,
        force_terminal=color,
        color_system="truecolor" if color else None,
        legacy_windows=False,
    )
    console.print(tree)
    return console.file.getvalue()


def test_the_tree_has_a_line_per_mask_in_order_of_area():
    lines = printed(forest_tree(RECORD, 10)).splitlines()
    assert re.findall(r"#(\d+)", "\n".join(lines)) == ["9", "1", "3", "4", "2"]
    assert len(lines) == 6


def test_parts_are_indented_below_what_they_are_part_of():
    lines = printed(forest_tree(RECORD, 10)).splitlines()
    indent = {int(line.split("#")[1].split()[0]): line.index("█") for line in lines[1:]}
    assert indent[1] == indent[9] < indent[2] == indent[3] < indent[4]


def test_each_line_holds_the_figures_of_its_mask():
    text = printed(forest_tree(RECORD, 10))
    assert "#1  15%  score 0.91  at 1,2  3 x 4" in text
    assert "#2  1%  score 0.25  at 5,6  7 x 8" in text
    assert "#4  0.05%" in text


def test_the_first_line_names_the_image_as_it_is_called():
    assert printed(forest_tree(RECORD, 10)).startswith("album [1]/a.jpg  40 x 50 px, 5 masks in 2 trees\n")
    assert "the best 2 of 5 masks in 1 tree" in printed(forest_tree(RECORD, 2))


def test_the_swatches_are_in_the_colors_of_the_overlay():
    text = printed(forest_tree(RECORD, 10), color=True)
    for red, green, blue in mask_colors(RECORD):
        assert f"38;2;{red};{green};{blue}m██" in text


def test_a_record_without_masks_is_one_line():
    assert printed(forest_tree(LabelRecord("a.jpg", 5, 6), 10)) == "a.jpg  6 x 5 px, 0 masks in 0 trees\n"
