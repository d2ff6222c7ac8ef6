"""What the tests of `sohes segment` share: outputs made by hand, a network of the smallest size, and a package that has
one or none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from model_cases import SMALL
from sohes_benchmarks.bundle import bundle

from sohes_cli.model.files import save_model
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.model.output import Output
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.settings import to_plain
from sohes_cli.training.config import TrainConfig
from sohes_cli.vit import bundled

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from numpy.typing import NDArray

__all__ = [
    "IMAGE_SIZE",
    "TINY",
    "disc_logits",
    "nested_boxes",
    "output_of",
    "save_tiny",
    "ship_model",
    "ship_no_model",
    "tiny_model",
]

IMAGE_SIZE = 96
TINY = replace(
    SMALL,
    patch_size=16,
    adapter_points=4,
    heads=2,
    pixel_layers=1,
    pixel_points=4,
    pixel_mlp_dim=32,
    decoder_layers=2,
    decoder_mlp_dim=32,
    queries=12,
)


def tiny_model(seed: int = 0) -> EntityModel:
    """An untrained network: its masks mean nothing, but all of them pass through every step."""
    torch.manual_seed(seed)
    return EntityModel(TINY).eval()


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """The model file of an untrained network in a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {"config": to_plain(TrainConfig(model=TINY)), "image_size": IMAGE_SIZE, "step": 1}
    save_model(folder / MODEL_NAME, tiny_model(seed), description)
    return folder / MODEL_NAME


def ship_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this version of the package one that has no model."""
    monkeypatch.setattr(bundled, "MODEL", replace(bundled.MODEL, sha256=""))


def ship_model(monkeypatch: pytest.MonkeyPatch, source: Path, folder: Path) -> Path:
    """Bundle a model, and make this version of the package one that has it, in a folder of its own."""
    path = folder / MODEL_NAME
    monkeypatch.setattr(bundled, "MODEL", replace(bundled.MODEL, path=path))
    monkeypatch.setattr(bundled, "MODEL", replace(bundled.MODEL, sha256=bundle(source)["sha256"]))
    return path


def output_of(logits: NDArray[np.float32], entity: list[float]) -> Output:
    """The output whose last stage has these mask logits [Q, h, w] and entity probabilities; the stage before says the
    opposite.
    """
    masks = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
    eye = torch.eye(len(masks))[None]
    found = torch.tensor(entity).clamp(1e-6, 1 - 1e-6)
    classes = torch.stack([found.logit(), torch.zeros_like(found)], -1)[None]
    return Output(torch.stack([-classes, classes]), torch.stack([-eye, eye]), torch.stack([-eye, eye]), masks[None])


def disc_logits(
    discs: list[tuple[float, float, float]], height: int, width: int, steepness: float = 2.0
) -> NDArray[np.float32]:
    """Mask logits of discs (y, x, radius), positive inside, float32 [Q, height, width]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([steepness * (r - np.hypot(y - cy, x - cx)) for cy, cx, r in discs]).astype(np.float32)


def nested_boxes(n: int, seed: int, height: int = 36, width: int = 40) -> NDArray[np.bool_]:
    """Random boxes with a little noise, none empty: many lie in each other, some nearly."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, height, width), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[top : top + rng.integers(2, height), left : left + rng.integers(2, width)] = True
        mask &= rng.random((height, width)) > 0.03
        mask[top, left] = True
    return masks
