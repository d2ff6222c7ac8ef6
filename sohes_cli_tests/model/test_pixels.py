"""Network input: normalization, and zeros in the padding."""

from __future__ import annotations

import torch

from sohes_cli.model.pixels import network_input


def test_pixels_are_normalized_by_imagenet_and_zero_beyond_an_image() -> None:
    pixels = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = [(20, 64), (32, 7)]
    found = network_input(pixels, sizes)
    assert found.shape == (2, 3, 32, 64)
    assert found.dtype == torch.float32
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for image, (height, width), raw in zip(found, sizes, pixels, strict=True):
        expected = torch.zeros(32, 64, 3)
        expected[:height, :width] = (raw[:height, :width] / 255 - mean) / deviation
        torch.testing.assert_close(image, expected.permute(2, 0, 1))
