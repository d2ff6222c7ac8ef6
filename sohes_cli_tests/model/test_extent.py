"""Norms, interpolation and masks of images in a padded canvas, against PyTorch's on each image alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from sohes_cli.model.extent import Extent, MaskedBatchNorm, MaskedGroupNorm, resize, split_levels

CELLS = ((3, 5), (6, 2), (1, 1))
GRID = (6, 8)
C = 8


def canvas(seed: int = 0) -> torch.Tensor:
    """Return maps whose padding is far from any value of an image."""
    maps = 1e3 + torch.randn(len(CELLS), C, *GRID, generator=torch.Generator().manual_seed(seed))
    for image, (height, width) in zip(maps, CELLS, strict=True):
        image[:, :height, :width] -= 1e3 - 2
    return maps


def own(maps: torch.Tensor) -> list[torch.Tensor]:
    return [image[None, :, :h, :w] for image, (h, w) in zip(maps, CELLS, strict=True)]


def outside(maps: torch.Tensor) -> torch.Tensor:
    rest = maps.detach().clone()
    for number, (height, width) in enumerate(CELLS):
        rest[number, :, :height, :width] = 0
    return rest


def with_random_affine(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(1))
        norm.bias.normal_(generator=torch.Generator().manual_seed(2))
    return norm


def gradients(outputs: list[torch.Tensor], inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    return torch.autograd.grad(loss, inputs)


def test_a_group_norm_in_a_canvas_is_that_of_each_image_alone() -> None:
    norm = with_random_affine(MaskedGroupNorm(4, C))
    alone = with_random_affine(nn.GroupNorm(4, C))
    maps, same = canvas().requires_grad_(), canvas().requires_grad_()
    found = norm(maps, CELLS)
    expected = [alone(part) for part in own(same)]
    for part, wanted in zip(own(found), expected, strict=True):
        torch.testing.assert_close(part, wanted)
    assert not outside(found).any()
    actual = gradients(own(found), [maps, norm.weight, norm.bias])
    for gradient, wanted in zip(actual, gradients(expected, [same, alone.weight, alone.bias]), strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert not outside(actual[0]).any()


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_in_a_canvas_is_that_of_the_images_cells(training: bool) -> None:
    norm = with_random_affine(MaskedBatchNorm(C)).train(training)
    alone = with_random_affine(nn.BatchNorm2d(C)).train(training)
    for each in (norm, alone):
        each.running_mean.fill_(0.3)
        each.running_var.fill_(1.7)
    maps, same = canvas().requires_grad_(), canvas().requires_grad_()
    found = norm(maps, CELLS)
    cells = torch.cat([part.flatten(2) for part in own(same)], 2)[..., None]
    expected = alone(cells)
    torch.testing.assert_close(torch.cat([part.flatten(2) for part in own(found)], 2)[..., None], expected)
    assert not outside(found).any()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(norm, name), getattr(alone, name), msg=name)
    assert training == (float((norm.running_mean - 0.3).abs().max()) > 1e-2)
    packed = [torch.cat([part.flatten(2) for part in own(found)], 2)[..., None]]
    actual = gradients(packed, [maps, norm.weight, norm.bias])
    for gradient, wanted in zip(actual, gradients([expected], [same, alone.weight, alone.bias]), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    assert not outside(actual[0]).any()


def test_norms_of_images_that_fill_the_canvas_are_pytorchs() -> None:
    maps = canvas()
    for norm, alone in ((MaskedGroupNorm(4, C), nn.GroupNorm(4, C)), (MaskedBatchNorm(C), nn.BatchNorm2d(C))):
        assert torch.equal(norm(maps), alone(maps))


def test_a_batch_norm_can_be_trained_on_a_single_cell() -> None:
    norm = with_random_affine(MaskedBatchNorm(C))
    found = norm(canvas()[-1:], CELLS[-1:])
    torch.testing.assert_close(found[0, :, 0, 0], norm.bias, rtol=1e-3, atol=1e-3)  # a cell is its own mean
    assert int(norm.num_batches_tracked) == 1


def _norm_in_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = with_random_affine(MaskedBatchNorm(C))
    maps = canvas()[rank::2].requires_grad_()
    found = norm(maps, CELLS[rank::2])
    weights = torch.randn(canvas().shape, generator=torch.Generator().manual_seed(3))[rank::2]
    (found * weights).sum().backward()
    torch.save([found.detach(), maps.grad, norm.weight.grad, norm.running_mean, norm.running_var], f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without processes")
def test_a_batch_norm_over_two_processes_is_that_of_all_their_images() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_norm_in_a_process, (folder,), nprocs=2)
        parts = [torch.load(Path(folder) / str(rank), weights_only=True) for rank in range(2)]
    norm, maps = with_random_affine(MaskedBatchNorm(C)), canvas().requires_grad_()
    found = norm(maps, CELLS)
    (found * torch.randn(maps.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for rank, (out, gradient, weight, mean, variance) in enumerate(parts):
        torch.testing.assert_close(out, found.detach()[rank::2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, maps.grad[rank::2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(variance, norm.running_var)
        assert not torch.allclose(weight, norm.weight.grad)
    torch.testing.assert_close(parts[0][2] + parts[1][2], norm.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 0.875, 2, 4])
def test_an_image_is_resized_as_it_would_be_alone(factor: float) -> None:
    sizes = [(64, 96), (32, 128), (128, 32)]
    pixels = torch.randn(3, 2, 128, 128, generator=torch.Generator().manual_seed(0))
    extent = Extent.of(pixels, sizes)
    found = resize(pixels, (int(128 * factor), int(128 * factor)), extent, 1)
    for image, maps, (height, width) in zip(pixels, found, sizes, strict=True):
        size = int(height * factor), int(width * factor)
        alone = functional.interpolate(image[None, :, :height, :width], size, mode="bilinear", align_corners=False)[0]
        assert torch.equal(maps[:, : size[0], : size[1]], alone)
        assert not maps[:, size[0] :].any()
        assert not maps[:, :, size[1] :].any()


@pytest.mark.parametrize("stride", [1, 4, 32])
def test_masks_and_cells_count_up_to_the_next_multiple_of_32(stride: int) -> None:
    extent = Extent.of(torch.zeros(2, 3, 96, 64), [(33, 64), (96, 1)])
    assert extent.cells(stride) == ((64 // stride, 64 // stride), (96 // stride, 32 // stride))
    mask = extent.mask(stride)
    assert mask is not None
    assert mask.shape == (2, 1, *extent.grid(stride))
    for inside, (height, width) in zip(mask, extent.cells(stride), strict=True):
        assert inside[:, :height, :width].all()
        assert int(inside.sum()) == height * width
    flat = extent.flat_mask((stride, 32))
    assert flat is not None
    assert torch.equal(flat, torch.cat([mask.flatten(1), extent.mask(32).flatten(1)], 1))


def test_a_canvas_that_all_images_fill_has_no_masks() -> None:
    for sizes in (None, [(64, 96), (40, 70)]):
        extent = Extent.of(torch.zeros(2, 3, 64, 96), sizes)
        assert extent.mask(4) is None
        assert extent.flat_mask((8, 16)) is None
        assert extent.cells(8) == ()


@pytest.mark.parametrize(
    ("shape", "sizes", "words"),
    [
        ((1, 3, 40, 64), None, "multiples of 32"),
        ((1, 3, 64, 40), [(64, 40)], "multiples of 32"),
        ((2, 3, 64, 64), [(64, 64)], "1 sizes do not fit 2 images"),
        ((1, 3, 64, 64), [(65, 64)], "do not fit into a canvas"),
        ((1, 3, 64, 64), [(0, 64)], "do not fit into a canvas"),
    ],
)
def test_inconsistent_sizes_are_refused(
    shape: tuple[int, ...], sizes: list[tuple[int, int]] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Extent.of(torch.zeros(shape), sizes)


def test_tokens_are_split_in_raster_order() -> None:
    grids = [(2, 3), (1, 2)]
    tokens = torch.arange(8.0)[None, :, None].expand(1, 8, 2)
    first, second = split_levels(tokens, grids)
    assert torch.equal(first[0, 1], torch.arange(6.0).view(2, 3))
    assert torch.equal(second[0, 0], torch.tensor([[6.0, 7.0]]))
