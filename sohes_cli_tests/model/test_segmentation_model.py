"""The whole network: independence of the batch, gradients of every parameter, and unchanged ones with checkpointing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_cases import SMALL, small_model

from sohes_cli.model.output import Output
from sohes_cli.model.segmentation_model import EntityModel

# ViTs and strides
SHAPES: dict[str, dict[str, Any]] = {
    "patch 8 every 16 pixels": {},
    "patch 8 every 8 pixels": {"token_stride": 8},
    "patch 16": {"patch_size": 16},
    "patch 16 every 4 pixels": {"patch_size": 16, "token_stride": 4},
    "patch 14 with registers": {"backbone": "vit_small_patch14_reg4_dinov2", "patch_size": 0},
    "patch 32 and a norm before the blocks": {
        "backbone": "vit_base_patch32_clip_224",
        "patch_size": 0,
        "token_stride": 32,
    },
}
EVERY_SHAPE = pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
SIZES = [(64, 96), (32, 33), (90, 40)]


def photographs(height: int, width: int, sizes: list[tuple[int, int]], seed: int = 0) -> torch.Tensor:
    """Images in the upper left of a canvas of zeros, each the same whatever the canvas and its neighbors."""
    pixels = torch.zeros(len(sizes), 3, height, width, dtype=torch.float64)
    for number, (image, (rows, columns)) in enumerate(zip(pixels, sizes, strict=True)):
        generator = torch.Generator().manual_seed(100 * seed + number)
        image[:, :rows, :columns] = torch.randn(3, rows, columns, generator=generator, dtype=torch.float64)
    return pixels


def part(output: Output, image: int, height: int, width: int) -> Output:
    """Return the output of one image of this size in a batch."""
    stages = (values[:, image : image + 1] for values in output[:3])
    return Output(*stages, output.mask_features[image : image + 1, :, : height // 4, : width // 4])


@EVERY_SHAPE
@torch.no_grad()
def test_padding_and_other_images_change_nothing(changes: dict[str, Any]) -> None:
    model = small_model(**changes).double()
    canvases = [(-(-height // 32) * 32, -(-width // 32) * 32) for height, width in SIZES]
    pixels = photographs(96, 128, SIZES)
    for image, canvas in zip(pixels, canvases, strict=True):
        image[:, canvas[0] :], image[:, :, canvas[1] :] = 9, 9  # beyond the next multiple of 32 may lie anything
    batched = model(pixels, SIZES)
    for number, (size, canvas) in enumerate(zip(SIZES, canvases, strict=True)):
        alone = model(pixels[number : number + 1, :, : canvas[0], : canvas[1]], [size])
        for name, found, expected in zip(Output._fields, part(batched, number, *canvas), alone, strict=True):
            torch.testing.assert_close(
                found, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@torch.no_grad()
def test_images_differ_and_queries_differ() -> None:
    output = small_model()(photographs(64, 64, [(64, 64)] * 2).float())
    for values in output[:3]:
        assert float((values[:, 0] - values[:, 1]).abs().max()) > 1e-3
        assert float(values.std(2).mean()) > 1e-2
    allowed = output.pred_masks() > 0
    assert 0.1 < float(allowed.float().mean()) < 0.9  # masked attention has something to mask


@EVERY_SHAPE
@torch.no_grad()
def test_output_shapes_of_any_aspect_ratio(changes: dict[str, Any]) -> None:
    output = small_model(**changes)(torch.zeros(1, 3, 32, 160))
    stages, queries, channels = SMALL.decoder_layers + 1, SMALL.queries, SMALL.hidden_dim
    assert output.pred_logits.shape == (stages, 1, queries, 2)
    assert output.mask_embeddings.shape == output.queries.shape == (stages, 1, queries, channels)
    assert output.mask_features.shape == (1, channels, 8, 40)
    assert output.pred_masks(0).shape == (1, queries, 8, 40)
    assert all(values.isfinite().all() for values in output)


def test_sizes_that_fill_the_canvas_are_as_good_as_none() -> None:
    model, pixels = small_model(), torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(model(pixels, [(64, 32)]), model(pixels), strict=True):
        assert torch.equal(found, expected)


def loss_of(model: EntityModel, pixels: torch.Tensor, sizes: list[tuple[int, int]]) -> torch.Tensor:
    """Return a randomly weighted mean of all outputs, so that nothing cancels."""
    output = model(pixels, sizes)
    generator = torch.Generator().manual_seed(5)
    values = [*output, model.ancestor_head(output.queries)]
    return torch.stack([(v * torch.randn(v.shape, generator=generator).to(v)).mean() for v in values]).sum()


@EVERY_SHAPE
def test_every_parameter_gets_a_gradient(changes: dict[str, Any]) -> None:
    model = small_model(**changes).train()
    loss_of(model, photographs(96, 96, SIZES).float(), SIZES).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_parameters_get_a_gradient_from_the_first_step_on() -> None:
    torch.manual_seed(0)
    model = EntityModel(SMALL).train()
    loss_of(model, photographs(64, 64, [(64, 64)]).float(), [(64, 64)]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(exchange.injector.gamma.grad.any() for exchange in model.backbone.interactions)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputed_blocks_give_the_same_gradients(drop_path: float) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small_model(drop_path=drop_path).train()
        model.backbone.checkpointing = checkpointing
        runs = []
        for number, block in enumerate(model.backbone.vit.blocks):
            block.attn.qkv.register_forward_hook(lambda *_, number=number, runs=runs: runs.append(number))
        torch.manual_seed(7)
        loss_of(model, photographs(96, 96, SIZES).float(), SIZES).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert sorted(runs) == sorted([0, 1] * (2 if checkpointing else 1))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6)


def test_a_step_of_training_in_a_16_bit_type_is_close_to_one_in_32() -> None:
    losses = []
    for enabled in (False, True):
        model = small_model().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = loss_of(model, photographs(96, 96, SIZES).float(), SIZES)
        loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], abs=0.2)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("sizes", [None, [(40, 64)]])
def test_a_canvas_that_is_no_multiple_of_32_is_refused(sizes: list[tuple[int, int]] | None) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        small_model()(torch.zeros(1, 3, 40, 64), sizes)


def test_the_same_seed_gives_the_same_network() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(EntityModel(replace(SMALL, queries=5)).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
