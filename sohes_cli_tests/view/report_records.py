"""Labels for the browser tests of the HTML report, and its expected content by plain rules."""

from __future__ import annotations

import numpy as np
from label_cases import annotate, rectangle

from sohes_cli.labels.manifest import Manifest, open_store
from sohes_cli.masks.rle import decode_mask
from sohes_cli.structures import LabelRecord
from sohes_cli.view.html_report import open_labels
from sohes_cli.view.selection import mask_colors, tree_order

H, W = 120, 160
BOXES = {  # id -> left, top, right, bottom, parent, score: two trees of three levels whose roots overlap
    1: (8, 10, 88, 110, None, 0.9),
    2: (16, 20, 70, 90, 1, 0.8),
    3: (24, 30, 50, 60, 2, 0.2),
    4: (80, 30, 150, 100, None, 0.7),
    5: (90, 40, 140, 90, 4, 0.1),
    6: (100, 50, 120, 70, 5, 0.6),
}
# id -> (x, y) inside, where it is the smallest
INSIDE = {1: (10, 100), 2: (60, 80), 3: (30, 40), 4: (84, 95), 5: (130, 80), 6: (110, 60)}
BACKGROUND = (155, 5)
STRANGE = 'sub/<img src=x onerror=alert(1)> "ü" #1 50%.png'
EMPTY = "empty.png"
CROWDED = "crowded.png"


def boxes_record(name, shift=0, ids=tuple(BOXES)):
    masks = []
    for i in ids:
        left, top, right, bottom, parent, score = BOXES[i]
        mask = rectangle(left + shift, top, right + shift, bottom, (H, W))
        masks.append(annotate(mask, i, parent if parent in ids else None, score))
    return LabelRecord(name, H, W, tuple(masks))


def crowded_record():
    """Forty ellipses that overlap as they like in a random forest, with equal areas and scores among them."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:H, :W]
    masks = []
    for i in range(40):
        center_y, center_x, radius_y, radius_x = rng.integers((0, 0, 4, 4), (H, W, 40, 50))
        mask = ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 <= 1
        if i in (20, 30):
            mask = decode_mask(masks[-1].segmentation).astype(bool)
        parent = int(rng.integers(1, i + 1)) if i and rng.random() < 0.8 else None
        masks.append(annotate(mask, i + 1, parent, float(rng.integers(1, 6)) / 5))
    return LabelRecord(CROWDED, H, W, tuple(masks))


def write_store(root, records):
    store = open_store(root, Manifest("explore", "images", {}, {}, {}))
    for record in records:
        store.write(record)
    return open_labels(root)


def partition(record, level):
    """The color of each pixel, uint8 RGBA [H, W, 4], pixel by pixel from the rule that the page states."""
    colors = mask_colors(record)
    levels = record.forest.levels
    masks = [decode_mask(a.segmentation) for a in record.annotations]
    ranks = [(levels[i], -a.area, a.id) for i, a in enumerate(record.annotations)]
    shown = np.zeros((H, W, 4), np.uint8)
    owners = set()
    for y, x in np.ndindex(H, W):
        covering = [i for i, mask in enumerate(masks) if mask[y, x] and levels[i] <= level]
        if covering:
            owner = max(covering, key=ranks.__getitem__)
            owners.add(owner)
            shown[y, x] = (*colors[owner], 255)
    return shown, len(owners)


def tree_rows(record):
    roots, children = tree_order(record)
    rows, todo = [], [(root, 0) for root in reversed(roots)]
    while todo:
        node, level = todo.pop()
        rows.append((record.annotations[node].id, level))
        todo += [(child, level + 1) for child in reversed(children[node])]
    return rows
