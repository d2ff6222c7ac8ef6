"""Forest of one record as a picture: a tile for every mask, its parts to its right, joined by lines.

A tile shows the photograph around its mask, faded outside, and the mask's outline in its color in the overlay at the
top left. Trees are sorted by the area of their roots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sohes_cli.view.forest_layout import COLUMN_STEP, ROW_STEP, TILE_H, TILE_W, flow_blocks, lay_out_tree, tile_xy
from sohes_cli.view.overlay import MAX_PICTURE_SIDE, overlay, reduced, reduced_mask
from sohes_cli.view.selection import Color, count_masks, mask_colors, percentage, select_masks, tree_order

if TYPE_CHECKING:
    import numpy.typing as npt

    from sohes_cli.structures import Annotation, LabelRecord

    Pixels = npt.NDArray[np.uint8]

__all__ = ["draw_forest"]

_KEY_SIDE, _KEY_CAPTION_H = 452, 34  # the key is as wide as three tiles
_PAPER, _BLANK, _INK, _FAINT = (255, 255, 255), (244, 244, 244), (35, 38, 42), (120, 125, 132)
_FADE = 0.8
_CONTEXT_PX, _CONTEXT = 4, 0.08  # around a mask's box, on each side
_SMALLEST_WINDOW = 16  # rows, to show a mask of one pixel among its neighbors


def draw_forest(pixels: Pixels, record: LabelRecord, max_masks: int) -> Pixels:
    """Draw the best masks of a record as a forest.

    Args:
        pixels: the photograph, uint8 RGB [H, W, 3], possibly smaller than the record's size.
        record: its labels.
        max_masks: maximum number of masks, the best-scoring ones.

    Returns:
        uint8 RGB [H', W', 3], of a size that depends on the forest.

    Raises:
        StoreError: if a mask of the record is corrupt.
    """
    shown = select_masks(record, max_masks)
    picture = reduced(pixels, MAX_PICTURE_SIDE)
    key = Image.fromarray(reduced(overlay(picture, shown, max_masks), _KEY_SIDE))
    roots, children = tree_order(shown)
    blocks = [lay_out_tree(root, children) for root in roots]
    page = flow_blocks(blocks, (key.width, key.height + _KEY_CAPTION_H))
    canvas = Image.new("RGB", (page.width, page.height), _PAPER)
    canvas.paste(key, page.key_xy)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (page.key_xy[0], page.key_xy[1] + key.height + 8), count_masks(record, shown), _INK, 14)
    colors = mask_colors(shown)
    for block, corner_xy in zip(blocks, page.corners_xy, strict=True):
        for node, cell in block.cells.items():
            x, y = tile_xy(corner_xy, cell)
            for child in children[node]:
                _join(draw, (x, y), tile_xy(corner_xy, block.cells[child]), colors[node], child in block.in_grid)
            canvas.paste(Image.fromarray(_tile(picture, shown, shown.annotations[node], colors[node])), (x, y))
            _caption(draw, (x, y + TILE_H + 3), shown.annotations[node])
    return np.asarray(canvas, np.uint8)


def _join(
    draw: ImageDraw.ImageDraw, parent_xy: tuple[int, int], child_xy: tuple[int, int], color: Color, from_above: bool
) -> None:
    """Draw the elbow line from a tile to one of its parts, which it enters from the left or from above."""
    start = (parent_xy[0] + TILE_W, parent_xy[1] + TILE_H // 2)
    turn_x = parent_xy[0] + (TILE_W + COLUMN_STEP) // 2
    if from_above:
        rail_y, end_x = child_xy[1] - (ROW_STEP - TILE_H) // 6, child_xy[0] + TILE_W // 2
        points = [start, (turn_x, start[1]), (turn_x, rail_y), (end_x, rail_y), (end_x, child_xy[1])]
    else:
        end = (child_xy[0], child_xy[1] + TILE_H // 2)
        points = [start, (turn_x, start[1]), (turn_x, end[1]), end]
    draw.line(points, fill=color, width=2, joint="curve")


def _tile(picture: Pixels, record: LabelRecord, annotation: Annotation, color: Color) -> Pixels:
    """Draw the photograph around a mask, uint8 [TILE_H, TILE_W, 3]: faded outside, the mask outlined."""
    mask = reduced_mask(record, annotation, *picture.shape[:2])
    rows, columns = _window(mask)
    crop, cover = picture[rows, columns], mask[rows, columns].astype(np.float32)
    scale = min(TILE_H / crop.shape[0], TILE_W / crop.shape[1])
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    smooth, linear = (cv2.INTER_AREA,) * 2 if scale < 1 else (cv2.INTER_CUBIC, cv2.INTER_LINEAR)
    shown = np.asarray(cv2.resize(crop, size, interpolation=smooth), np.float32)
    inside = (cv2.resize(cover, size, interpolation=linear) >= 0.5).astype(np.uint8)
    shown += _FADE * (255 - shown) * (inside == 0)[..., None]
    outlined = np.ascontiguousarray(shown.round().clip(0, 255).astype(np.uint8))
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(outlined, contours, -1, color, 2, cv2.LINE_AA)
    return _centered(outlined)


def _window(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns of a mask's box with context, in the proportions of a tile where possible."""
    (top, bottom), (left, right) = _span(np.asarray(mask.any(axis=1))), _span(np.asarray(mask.any(axis=0)))
    rows = max(bottom - top, (right - left) * TILE_H / TILE_W, _SMALLEST_WINDOW)
    columns = max(right - left, rows * TILE_W / TILE_H)
    return _around(top, bottom, rows, mask.shape[0]), _around(left, right, columns, mask.shape[1])


def _span(is_inside: npt.NDArray[np.bool_]) -> tuple[int, int]:
    inside = np.flatnonzero(is_inside)
    if not len(inside):
        return 0, len(is_inside)
    context = _CONTEXT_PX + _CONTEXT * (inside[-1] - inside[0])
    return max(0, int(inside[0] - context)), min(len(is_inside), int(inside[-1] + context) + 1)


def _around(first: int, last: int, wanted: float, limit: int) -> slice:
    """Return a span of `wanted` pixels around [first, last), shifted into [0, limit)."""
    length = min(round(wanted), limit)
    start = min(max(0, (first + last - length) // 2), limit - length)
    return slice(start, start + length)


def _centered(tile: Pixels) -> Pixels:
    full = np.full((TILE_H, TILE_W, 3), _BLANK, np.uint8)
    top, left = (TILE_H - tile.shape[0]) // 2, (TILE_W - tile.shape[1]) // 2
    full[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return full


def _caption(draw: ImageDraw.ImageDraw, xy: tuple[int, int], annotation: Annotation) -> None:
    _write(draw, xy, f"#{annotation.id}   score {annotation.score:.2f}", _INK, 13)
    _write(draw, (xy[0], xy[1] + 16), f"{percentage(annotation)} of the image", _FAINT, 11)


def _write(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, color: Color, size: int) -> None:
    draw.text(xy, text, fill=color, font=ImageFont.load_default(size))
