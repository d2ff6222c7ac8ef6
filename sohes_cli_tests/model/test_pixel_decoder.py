"""Position embeddings of the pixel decoder: their definition, and independence of the canvas."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes_cli.model.extent import Extent
from sohes_cli.model.pixel_decoder import sine_positions

C = 8


def extent_of(height: int, width: int, sizes: list[tuple[int, int]] | None = None) -> Extent:
    return Extent.of(torch.zeros(len(sizes or [0]), 3, height, width), sizes)


def test_positions_are_sines_and_cosines_of_rows_then_columns() -> None:
    height, width, channels = 96, 64, 16
    found = sine_positions(extent_of(height, width), 32, channels)
    assert found.shape == (1, channels, 3, 2)
    for row in range(3):
        for column in range(2):
            expected = []
            for index, number in ((row, 3), (column, 2)):
                angle = 2 * math.pi * (index + 1) / (number + 1e-6)
                for pair in range(channels // 4):
                    scaled = angle / 10000 ** (2 * pair / (channels // 2))
                    expected += [math.sin(scaled), math.cos(scaled)]
            torch.testing.assert_close(found[0, :, row, column], torch.tensor(expected), atol=1e-5, rtol=0)


@given(
    sides=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    stride=st.sampled_from([4, 8, 16, 32]),
)
@settings(max_examples=30, deadline=None)
def test_positions_of_an_image_do_not_depend_on_the_canvas(sides: list[tuple[int, int]], stride: int) -> None:
    sizes = [(32 * h, 32 * w) for h, w in sides]
    found = sine_positions(extent_of(160, 128, sizes), stride, C)
    for image, (height, width) in zip(found, sizes, strict=True):
        alone = sine_positions(extent_of(height, width), stride, C)[0]
        assert torch.equal(image[:, : height // stride, : width // stride], alone)
