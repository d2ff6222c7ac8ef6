"""Both decoders against Mask2Former's implementation in transformers, with the same parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_cases import SMALL, randomize
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder, Mask2FormerTransformerModule

from sohes_cli.model.extent import Extent
from sohes_cli.model.pixel_decoder import PixelDecoder
from sohes_cli.model.public_weights import from_public
from sohes_cli.model.query_decoder import QueryDecoder

CONFIG = replace(
    SMALL,
    hidden_dim=64,
    pixel_points=4,
    pixel_layers=3,
    pixel_mlp_dim=96,
    decoder_layers=7,
    decoder_mlp_dim=80,
    queries=9,
)
CHANNELS = [24, 32, 40, 48]
SIZES = [(64, 96), (32, 32), (160, 64)]


def their_config() -> Mask2FormerConfig:
    return Mask2FormerConfig(
        feature_size=CONFIG.hidden_dim,
        mask_feature_size=CONFIG.hidden_dim,
        hidden_dim=CONFIG.hidden_dim,
        num_attention_heads=CONFIG.heads,
        encoder_layers=CONFIG.pixel_layers,
        encoder_feedforward_dim=CONFIG.pixel_mlp_dim,
        decoder_layers=CONFIG.decoder_layers + 1,  # it counts the prediction of the learned queries too
        dim_feedforward=CONFIG.decoder_mlp_dim,
        num_queries=CONFIG.queries,
        num_labels=1,
        dropout=0.0,
    )


class Theirs(torch.nn.Module):
    """Their decoders with random parameters, under the names of their whole model."""

    def __init__(self) -> None:
        super().__init__()
        config = their_config()
        self.model = torch.nn.Module()
        self.model.pixel_level_module = torch.nn.Module()
        self.model.pixel_level_module.decoder = Mask2FormerPixelDecoder(config, feature_channels=CHANNELS)
        self.model.transformer_module = Mask2FormerTransformerModule(in_features=CONFIG.hidden_dim, config=config)
        self.class_predictor = torch.nn.Linear(CONFIG.hidden_dim, 2)
        randomize(self, seed=11)


class Ours(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(CHANNELS, CONFIG)
        self.query_decoder = QueryDecoder(CONFIG)


@pytest.fixture(scope="module")
def both() -> tuple[Ours, Theirs]:
    ours, theirs = Ours().eval(), Theirs().eval()
    ours.load_state_dict(from_public(theirs.state_dict()))  # strict: every parameter of either has one of the other
    return ours, theirs


def maps_of(height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(height + width)
    strides = zip(CHANNELS, (4, 8, 16, 32), strict=True)
    return [
        torch.randn(2, channels, height // stride, width // stride, generator=generator) for channels, stride in strides
    ]


def near(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_pixel_decoder_is_theirs(both: tuple[Ours, Theirs], size: tuple[int, int]) -> None:
    ours, theirs = both
    maps = maps_of(*size)
    features, levels = ours.pixel_decoder(maps, Extent(*size))
    expected = theirs.model.pixel_level_module.decoder(
        maps, output_attentions=False, output_hidden_states=False, return_dict=True
    )
    near(features, expected.mask_features, "mask features")
    assert len(levels) == len(expected.multi_scale_features) == 3
    for number, (level, wanted) in enumerate(zip(levels, expected.multi_scale_features, strict=True)):
        near(level, wanted, f"level {number}")


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_stage_of_the_query_decoder_is_theirs(both: tuple[Ours, Theirs], size: tuple[int, int]) -> None:
    ours, theirs = both
    features, levels = ours.pixel_decoder(maps_of(*size), Extent(*size))
    output = ours.query_decoder(features, levels, Extent(*size))
    expected = theirs.model.transformer_module(levels, features)
    stages = CONFIG.decoder_layers + 1
    assert (
        len(output.queries) == len(expected.intermediate_hidden_states) == len(expected.masks_queries_logits) == stages
    )
    for stage in range(stages):
        hidden = expected.intermediate_hidden_states[stage].transpose(0, 1)
        near(output.queries[stage], hidden, f"queries of stage {stage}")
        near(output.pred_logits[stage], theirs.class_predictor(hidden), f"classes of stage {stage}")
        near(output.pred_masks(stage), expected.masks_queries_logits[stage], f"masks of stage {stage}")
    some = output.pred_masks() > 0
    assert 0.1 < float(some.float().mean()) < 0.9  # masks that are masks, or masked attention would not be tested


def test_gradients_of_both_decoders_are_theirs(both: tuple[Ours, Theirs]) -> None:
    ours, theirs = both
    size = SIZES[0]
    found = []
    for model in both:
        maps = [level.requires_grad_() for level in maps_of(*size)]
        if model is ours:
            features, levels = ours.pixel_decoder(maps, Extent(*size))
            hidden = ours.query_decoder(features, levels, Extent(*size)).queries[-1]
        else:
            decoded = theirs.model.pixel_level_module.decoder(
                maps, output_attentions=False, output_hidden_states=False, return_dict=True
            )
            features, levels = decoded.mask_features, list(decoded.multi_scale_features)
            hidden = theirs.model.transformer_module(levels, features).intermediate_hidden_states[-1].transpose(0, 1)
        generator = torch.Generator().manual_seed(0)
        parts = [features, *levels, hidden]
        loss = torch.stack([(part * torch.randn(part.shape, generator=generator)).sum() for part in parts]).sum()
        found.append(torch.autograd.grad(loss, maps))
    for stride, gradient, expected in zip((4, 8, 16, 32), *found, strict=True):
        difference = float((gradient - expected).norm() / expected.norm())
        assert difference < 1e-4, stride
