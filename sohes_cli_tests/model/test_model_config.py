"""Model settings: presets that build, and out-of-range values refused by name."""

from __future__ import annotations

import pytest
import torch

from sohes_cli.errors import ConfigError
from sohes_cli.model.config import MODEL_PRESETS, ModelConfig
from sohes_cli.model.segmentation_model import EntityModel


@pytest.mark.parametrize(("preset", "millions"), [("tiny", (5, 12)), ("small", (35, 60)), ("base", (110, 150))])
def test_presets_can_be_built(preset: str, millions: tuple[int, int]) -> None:
    config = ModelConfig(**MODEL_PRESETS[preset])
    with torch.device("meta"):
        model = EntityModel(config)
    assert millions[0] < sum(p.numel() for p in model.parameters()) / 1e6 < millions[1]
    assert model.backbone.channels == (config.embed_dim or {"small": 384, "base": 768}[preset])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", ""),
        ("weights", ""),
        ("patch_size", 65),
        ("embed_dim", -1),
        ("token_stride", 12),
        ("drop_path", 1.0),
        ("adapter_value_ratio", 0.0),
        ("adapter_mlp_ratio", 9.0),
        ("interactions", 0),
        ("queries", 0),
        ("hidden_dim", 48),
        ("heads", 3),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**{name: value})
    assert f"model.{name}" in str(caught.value)


def test_only_numbers_that_are_given_replace_the_vits_own() -> None:
    assert ModelConfig().vit_shape == {}
    assert ModelConfig(patch_size=8, depth=6).vit_shape == {"patch_size": 8, "depth": 6}
