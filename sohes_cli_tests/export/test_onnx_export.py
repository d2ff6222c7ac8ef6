"""`sohes export --format onnx`: the graph gives the model's outputs at sizes not traced; errors name the source."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from model_cases import small_model

from sohes_cli.export.onnx import OUTPUTS
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.postprocess import find_masks
from sohes_cli.model.files import save_model
from sohes_cli.model.pixels import network_input

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sohes_cli.model.segmentation_model import EntityModel


@pytest.fixture(scope="module")
def model() -> EntityModel:
    """One block, one exchange and one layer of each decoder: every kind of operation once, for tracing is slow."""
    return small_model(depth=1, interactions=1, heads=2, pixel_layers=1, decoder_layers=1)


@pytest.fixture(scope="module")
def run(model: EntityModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model.safetensors", model, {"config": {"model": asdict(model.config)}, "image_size": 96})
    return folder


@pytest.mark.timeout(600)
def test_the_graph_is_the_model_at_any_size(sohes: Callable, model: EntityModel, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    result = sohes("export", run, "--out", out)
    assert result.code == 0, result.err
    assert result.out.startswith(f"Wrote {out}: ")
    assert result.out.count("\n") == 1
    facts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert facts["image_size"] == "96"
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 192, 3), np.uint8)
    found = dict(
        zip(
            OUTPUTS,
            session.run(list(OUTPUTS), {"pixels": pixels.transpose(0, 3, 1, 2).astype(np.float32)}),
            strict=True,
        )
    )
    with torch.no_grad():
        output = model(network_input(torch.from_numpy(pixels), [(64, 192)] * 3))
        masks = output.pred_masks().numpy()
        ancestors = model.ancestor_head(output.queries[-1]).sigmoid().numpy()
    np.testing.assert_allclose(found["mask_logits"], masks, atol=1e-3 * np.abs(masks).max())
    np.testing.assert_allclose(found["ancestor_probabilities"], ancestors, atol=1e-3)
    ranked = find_masks(output, 0, (64, 192), (64, 192), SegmentConfig(min_score=0.0, nms_iou=1.0))
    np.testing.assert_allclose(found["scores"][0][ranked.queries], ranked.scores, atol=1e-3)
    assert sohes("export", run, "--out", out).code == 1  # it exists


def test_labels_and_models_are_distinguished(
    sohes: Callable, run: Path, reference_folder: Path, tmp_path: Path
) -> None:
    for arguments, word in (
        ((run, "--format", "coco"), "is a model"),
        ((reference_folder, "--format", "onnx"), "is a label folder"),
        ((tmp_path / "nowhere", "--format", "onnx"), "nowhere"),
    ):
        result = sohes("export", *arguments, "--out", tmp_path / "file")
        assert (result.code, result.out) == (2, "")
        assert word in result.err
