"""Layout of a forest picture: parents left, their parts to the right, the trees in columns down the page.

A part with parts starts a row; leaves follow as a grid, so that twenty leaves do not take twenty rows. The trees keep
their order, down the first column and on at the top of the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["COLUMN_STEP", "ROW_STEP", "TILE_H", "TILE_W", "Block", "Page", "flow_blocks", "lay_out_tree", "tile_xy"]

TILE_H, TILE_W = 96, 128
COLUMN_STEP, ROW_STEP = TILE_W + 34, TILE_H + 34 + 16  # a tile, its caption and the gap to the next

_MARGIN, _BLOCK_GAP = 24, 30
_ASPECT = 1.5  # target width by height of the page
_N_TRIED = 64
_LARGEST_STACK = 3  # maximum number of leaves of one parent in one column


@dataclass(frozen=True)
class Block:
    """Layout of one tree.

    Args:
        cells: (row, column) of each node's tile.
        in_grid: leaves in a grid of several columns, which lines enter from above.
        rows: height in tiles.
        columns: width in tiles.
    """

    cells: dict[int, tuple[int, int]]
    in_grid: frozenset[int]
    rows: int
    columns: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, without the gap after the last tile."""
        return self.columns * COLUMN_STEP - (COLUMN_STEP - TILE_W), self.rows * ROW_STEP


@dataclass(frozen=True)
class Page:
    """Size of the page in pixels, and the top left corners (x, y) of the key and of each block."""

    width: int
    height: int
    key_xy: tuple[int, int]
    corners_xy: tuple[tuple[int, int], ...]

    @property
    def cost(self) -> float:
        """Area of the page times its deviation from the target aspect ratio."""
        off = self.width / self.height / _ASPECT
        return self.width * self.height * max(off, 1 / off)


def lay_out_tree(root: int, children: list[list[int]]) -> Block:
    """Give each node of a tree a row and a column.

    Args:
        root: the tree's root.
        children: parts of each node of the forest, in the order of display.
    """
    cells: dict[int, tuple[int, int]] = {}
    in_grid: set[int] = set()
    row, todo = 0, [([root], 0)]
    while todo:
        siblings, column = todo.pop()
        n_columns = _grid_columns(len(siblings))
        cells.update({node: (row + i // n_columns, column + i % n_columns) for i, node in enumerate(siblings)})
        in_grid.update(siblings if n_columns > 1 else ())
        below = children[siblings[0]]
        if not below:
            row += -(-len(siblings) // n_columns)
            continue
        leaves = [child for child in below if not children[child]]
        todo += [(leaves, column + 1)] if leaves else []
        todo += [([child], column + 1) for child in reversed(below) if children[child]]
    return Block(cells, frozenset(in_grid), row, 1 + max(column for _, column in cells.values()))


def flow_blocks(blocks: list[Block], key_size: tuple[int, int]) -> Page:
    """Flow the key and the trees into columns so that the page's cost is minimal.

    Args:
        blocks: the trees, in their order.
        key_size: width and height in pixels of the picture at the top of the first column.
    """
    shortest = max([key_size[1], *(block.size[1] for block in blocks)])
    longest = key_size[1] + sum(block.size[1] + _BLOCK_GAP for block in blocks)
    limits = [shortest + (longest - shortest) * i // _N_TRIED for i in range(_N_TRIED + 1)]
    return min((_flow(blocks, key_size, limit) for limit in limits), key=lambda page: page.cost)


def tile_xy(corner_xy: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int]:
    """Compute left and top of a tile in pixels from the corner of its block and its (row, column)."""
    row, column = cell
    return corner_xy[0] + column * COLUMN_STEP, corner_xy[1] + row * ROW_STEP


def _grid_columns(n: int) -> int:
    return 1 if n <= _LARGEST_STACK else math.ceil(0.8 * math.sqrt(n))


def _flow(blocks: list[Block], key_size: tuple[int, int], limit: int) -> Page:
    """Stack the trees, with a new column where one would end more than `limit` pixels down."""
    x, column_w, y, lowest = _MARGIN, key_size[0], _MARGIN + key_size[1] + _BLOCK_GAP, key_size[1]
    corners = []
    for block in blocks:
        width, height = block.size
        if y + height > _MARGIN + limit:
            x, column_w, y = x + column_w + _BLOCK_GAP, 0, _MARGIN
        corners.append((x, y))
        column_w, lowest = max(column_w, width), max(lowest, y + height - _MARGIN)
        y += height + _BLOCK_GAP
    return Page(x + column_w + _MARGIN, lowest + 2 * _MARGIN, (_MARGIN, _MARGIN), tuple(corners))
