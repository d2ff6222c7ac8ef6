"""Make a run's backbone the one that ships with the package: `python -m sohes_cli.pretrain.bundle runs/pretrain`.

The ViT is stored in half precision, which halves the file; the hash it prints goes into `explore/bundled.py`, and no other file is then
loaded as `bundled`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sohes_cli.explore.bundled import BUNDLED_PATH
from sohes_cli.explore.distilled import BACKBONE_FORMAT, find_backbone
from sohes_cli.explore.weights import file_sha256
from sohes_cli.training.checkpoints import read_tensors, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["bundle"]


def bundle(source: str, target: Path) -> str:
    """Write the backbone of a run or a file in half precision.

    Args:
        source: as for `find_backbone`.
        target: the file to write.

    Returns:
        Its SHA-256.
    """
    tensors, description = read_tensors(find_backbone(source), BACKBONE_FORMAT)
    write_tensors(target, {name: tensor.half() for name, tensor in tensors.items()}, description)
    return file_sha256(target)


if __name__ == "__main__":
    print(f'BUNDLED_SHA256 = "{bundle(sys.argv[1], BUNDLED_PATH)}"  # for sohes_cli/explore/bundled.py')  # noqa: T201
