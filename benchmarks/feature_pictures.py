"""Pictures of features: each photograph beside the first three principal components of its patches, as RGB.

python benchmarks/feature_pictures.py photos --backbone runs/pretrain --out features.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sohes_cli.explore.config import FeaturesConfig
from sohes_cli.explore.features import Backbone, build_backbone, patch_features
from sohes_cli.images.listing import list_images
from sohes_cli.images.reading import read_photograph

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEIGHT = 180


def principal_components(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Project features [C, h, w] to three components, stretched between percentiles 2 and 98, uint8 [h, w, 3]."""
    channels, rows, columns = features.shape
    points = features.reshape(channels, -1).T.astype(np.float64)
    points -= points.mean(0)
    _, _, directions = np.linalg.svd(points, full_matrices=False)
    shown = points @ directions[:3].T
    low, high = np.percentile(shown, [2, 98], axis=0)
    return (np.clip((shown - low) / (high - low), 0, 1) * 255).astype(np.uint8).reshape(rows, columns, 3)


def pair(path: Path, backbone: Backbone, image_size: int) -> NDArray[np.uint8]:
    """A photograph and its components beside each other, RGB."""
    pixels = read_photograph(path, path.name, 640).pixels
    size = (round(pixels.shape[1] * HEIGHT / pixels.shape[0]), HEIGHT)
    found = principal_components(patch_features(backbone, pixels, image_size))
    shown = [
        cv2.resize(pixels, size, interpolation=cv2.INTER_AREA),
        cv2.resize(found, size, interpolation=cv2.INTER_NEAREST),
    ]
    return np.asarray(np.concatenate(shown, axis=1), dtype=np.uint8)


def main() -> None:
    """Draw the photographs of a folder, one below the other in two columns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--backbone", required=True, help="as `sohes explore --backbone`")
    parser.add_argument("--color-share", type=float, default=0.0, help="0 shows the ViT alone")
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    backbone = build_backbone(FeaturesConfig(backbone=arguments.backbone, color_share=arguments.color_share), "cpu")
    pairs = [
        pair(arguments.images / name, backbone, arguments.image_size) for name in list_images(arguments.images).names
    ]
    width = max(p.shape[1] for p in pairs)
    cells = [np.pad(p, ((0, 6), (0, width - p.shape[1] + 6), (0, 0)), constant_values=255) for p in pairs]
    cells += [np.full_like(cells[0], 255)] * (len(cells) % 2)
    rows = [np.concatenate(cells[i : i + 2], axis=1) for i in range(0, len(cells), 2)]
    cv2.imwrite(str(arguments.out), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
