"""The strong view: what follows from seed and number alone, what is erased and how often, and that only pixels
change.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sohes_cli.data.batch import Batch, Example, collate
from sohes_cli.data.config import ViewsConfig
from sohes_cli.data.strong_view import draw_erasures, strong_batch

NOTHING = ViewsConfig(jitter=0.0, grayscale=0.0, blur=0.0, erase=0.0)
EVERYTHING = ViewsConfig(jitter=1.0, grayscale=0.3, blur=1.0, erase=1.0)
ERASED = replace(NOTHING, erase=1.0)
TABLE = (  # of Unbiased Teacher: probability, smallest and largest share of the image, and height over width
    (0.7, (0.05, 0.2), (0.3, 3.3)),
    (0.5, (0.02, 0.2), (0.1, 6.0)),
    (0.3, (0.02, 0.2), (0.05, 8.0)),
)
SIZES = [(40, 57), (64, 30), (64, 64), (10, 102), (5, 64), (1, 40)]


def noise(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def batch_of(images: list[torch.Tensor], numbers: list[int], stride: int = 32) -> Batch:
    """Images with two masks and a forest each."""
    rng, made = np.random.default_rng(1), []
    for number, pixels in zip(numbers, images, strict=True):
        bits = rng.integers(0, 256, (2, -(-pixels.shape[0] * pixels.shape[1] // 8)), dtype=np.uint8)
        made.append(Example(number, f"{number}.png", pixels, torch.from_numpy(bits), torch.tensor([-1, 0])))
    return collate(made, stride)


def strong(pixels: torch.Tensor, config: ViewsConfig, number: int = 0, seed: int = 0) -> torch.Tensor:
    """The strong view of one image by itself, without padding."""
    return strong_batch(batch_of([pixels], [number], stride=1), config, seed).pixels[0]


@pytest.fixture
def batch() -> Batch:
    return batch_of([noise(*size, seed) for seed, size in enumerate(SIZES)], [100 + i for i in range(len(SIZES))])


# What does not change


def test_nothing_drawn_changes_nothing(batch: Batch) -> None:
    assert torch.equal(strong_batch(batch, NOTHING, 0).pixels, batch.pixels)


def test_only_pixels_change(batch: Batch) -> None:
    before = batch.pixels.clone()
    found = strong_batch(batch, EVERYTHING, 0)
    assert torch.equal(batch.pixels, before)  # the batch that was given is still that of the other branch
    assert found.pixels.dtype == torch.uint8
    assert (found.sizes, found.numbers, found.names, found.errors) == (
        batch.sizes,
        batch.numbers,
        batch.names,
        batch.errors,
    )
    for name in ("masks", "parents"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(found, name), getattr(batch, name), strict=True))
    for image, old, (height, width) in zip(found.pixels, batch.pixels, batch.sizes, strict=True):
        assert not torch.equal(image[:height, :width], old[:height, :width])


# What it follows from


def test_an_image_is_the_same_alone_and_in_any_batch(batch: Batch) -> None:
    found = strong_batch(batch, EVERYTHING, 3).pixels
    for image, pixels, (height, width), number in zip(found, batch.pixels, batch.sizes, batch.numbers, strict=True):
        assert torch.equal(image[:height, :width], strong(pixels[:height, :width], EVERYTHING, number, seed=3))


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_make_up_the_strong_batch(batch: Batch, parts: int) -> None:
    split = [strong_batch(part, EVERYTHING, 3) for part in batch.split(parts)]
    assert torch.equal(torch.cat([part.pixels for part in split]), strong_batch(batch, EVERYTHING, 3).pixels)


def test_padding_stays_as_it_is_and_changes_nothing(batch: Batch) -> None:
    found = strong_batch(batch, EVERYTHING, 3).pixels
    filled, is_padding = batch.pixels.clone(), torch.ones(batch.pixels.shape[:3], dtype=torch.bool)
    for outside, (height, width) in zip(is_padding, batch.sizes, strict=True):
        outside[:height, :width] = False
    assert not found[is_padding].any()
    filled[is_padding] = 255
    other = strong_batch(replace(batch, pixels=filled), EVERYTHING, 3).pixels
    assert torch.equal(other[~is_padding], found[~is_padding])
    assert bool((other[is_padding] == 255).all())


def test_a_view_follows_from_seed_and_number() -> None:
    image = noise(32, 48, 0)
    same = [strong(image, EVERYTHING, number=4, seed=2) for _ in range(2)]
    assert torch.equal(*same)
    views = [strong(image, EVERYTHING, number=number, seed=seed) for number in range(8) for seed in range(3)]
    assert len({view.numpy().tobytes() for view in views}) == 24


# Which changes, and how often


@pytest.mark.parametrize(("name", "share"), [("jitter", 0.8), ("jitter", 0.3), ("grayscale", 0.2)])
def test_changes_are_as_probable_as_asked_for(name: str, share: float) -> None:
    image = noise(24, 24, 5)
    config = replace(NOTHING, **{name: share})
    changed = [not torch.equal(strong(image, config, number), image) for number in range(300)]
    assert abs(np.mean(changed) - share) < 0.08  # 2.8 standard deviations of 300 draws of a half


def test_gray_images_have_no_color_left() -> None:
    image = noise(30, 40, 6)
    gray = strong(image, replace(NOTHING, grayscale=1.0)).float()
    assert torch.equal(gray[..., 0], gray[..., 1])
    assert torch.equal(gray[..., 1], gray[..., 2])
    luma = image.float() @ torch.tensor([0.299, 0.587, 0.114])
    assert float((gray[..., 0] - luma).abs().max()) <= 0.51  # rounded to whole levels
    assert float(gray.std()) > 20


def test_blur_smooths_and_keeps_the_mean() -> None:
    image = noise(112, 112, 7)
    views = torch.stack([strong(image, replace(NOTHING, blur=1.0), number).float() for number in range(12)])
    assert float(views.std((1, 2, 3)).max()) <= float(image.float().std())
    assert float(views.std((1, 2, 3)).min()) < 0.5 * float(image.float().std())
    assert float((views.mean((1, 2, 3)) - image.float().mean()).abs().max()) < 1
    half = [not torch.equal(strong(image, replace(NOTHING, blur=0.5), number), image) for number in range(60)]
    assert 15 < sum(half) < 40  # the slightest of them changes no level


def test_jitter_is_as_strong_as_asked_for() -> None:
    image = noise(32, 32, 8)

    def change(strength: float) -> float:
        config = replace(NOTHING, jitter=1.0, jitter_strength=strength)
        return float(
            np.mean([float((strong(image, config, number).float() - image).abs().mean()) for number in range(20)])
        )

    assert change(0.0) == 0
    assert 1 < change(0.2) < change(1.0) / 3


# What is erased


def rectangles(config: ViewsConfig, size: tuple[int, int], count: int) -> list[list[tuple[int, int, int, int]]]:
    return [draw_erasures(*size, config, np.random.default_rng(seed)) for seed in range(count)]


def expected_count(height: int, width: int) -> float:
    """How many rectangles the table gives on the mean; those that would not fit are left out."""
    rng, n = np.random.default_rng(0), 200_000
    total = 0.0
    for probability, areas, aspects in TABLE:
        area, aspect = rng.uniform(*areas, n) * height * width, np.exp(rng.uniform(*np.log(aspects), n))
        total += probability * float(np.mean((np.sqrt(area * aspect) < height) & (np.sqrt(area / aspect) < width)))
    return total


@pytest.mark.parametrize("size", [(1000, 1000), (400, 900), (64, 48), (10, 102), (5, 64), (1, 40), (1, 1)])
def test_rectangles_lie_inside(size: tuple[int, int]) -> None:
    height, width = size
    drawn = rectangles(ERASED, size, 300)
    assert max(map(len, drawn)) <= 3
    for top, left, h, w in (rectangle for found in drawn for rectangle in found):
        assert h >= 1
        assert w >= 1
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        assert (h + 0.5) * (w + 0.5) >= 0.02 * height * width  # sides are rounded to whole pixels
        assert (h - 0.5) * (w - 0.5) <= 0.2 * height * width
        assert (h + 0.5) / (w - 0.5) >= 0.05
        assert (h - 0.5) / (w + 0.5) <= 8.0


def test_rectangles_have_every_size_and_place() -> None:
    drawn = np.array([rectangle for found in rectangles(ERASED, (1000, 1000), 2000) for rectangle in found])
    top, left, h, w = drawn.T
    assert np.allclose(np.quantile(top / (1000 - h), [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)
    assert np.allclose(np.quantile(left / (1000 - w), [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)
    shares, aspects = h * w / 1e6, h / w
    assert shares.min() < 0.025
    assert shares.max() > 0.195
    assert aspects.min() < 0.1
    assert aspects.max() > 5.5
    assert (
        abs(np.median(np.log(aspects))) < 0.1
    )  # as many upright as lying ones: 0.1 to 6 and 0.05 to 8 are cut where they do not fit


@pytest.mark.parametrize("size", [(1000, 1000), (300, 900)])
@pytest.mark.parametrize("erase", [1.0, 0.4])
def test_rectangles_are_as_frequent_as_the_table_says(size: tuple[int, int], erase: float) -> None:
    found = rectangles(replace(ERASED, erase=erase), size, 3000)
    assert (
        abs(np.mean([len(drawn) for drawn in found]) - erase * expected_count(*size)) < 0.05
    )  # 3 deviations: 0.9 / sqrt(3000)


def test_the_first_rectangle_alone_is_never_narrow() -> None:
    """It fits everywhere in a square, so where three are drawn it comes first; the others reach further."""
    triples = np.array([drawn for drawn in rectangles(ERASED, (1000, 1000), 3000) if len(drawn) == 3])
    shares, aspects = triples[..., 2] * triples[..., 3] / 1e6, triples[..., 2] / triples[..., 3]
    assert len(triples) > 100
    assert shares[:, 0].min() >= 0.049  # rounded sides
    assert 0.29 <= aspects[:, 0].min() <= aspects[:, 0].max() <= 3.34
    assert 0.099 <= aspects[:, 1].min() < 0.25
    assert 4 < aspects[:, 1].max() <= 6.06


def test_fewer_erasures_are_some_of_the_same() -> None:
    for many, few in zip(
        rectangles(ERASED, (80, 90), 200), rectangles(replace(ERASED, erase=0.5), (80, 90), 200), strict=True
    ):
        assert set(few) <= set(many)
    assert rectangles(NOTHING, (80, 90), 50) == [[]] * 50


def test_rectangles_of_noise_are_erased_and_nothing_else() -> None:
    """A single rectangle is a box whose every pixel is another; of a plain image nothing but noise could be."""
    image = torch.full((60, 80, 3), 117, dtype=torch.uint8)
    boxes, erased = 0, []
    for number in range(60):
        found = strong(image, ERASED, number)
        rows, columns = torch.where((found != 117).any(2))
        if not len(rows):
            continue
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        if height * width != len(rows):
            continue  # several
        boxes += 1
        assert (height + 0.5) * (width + 0.5) >= 0.02 * 4800
        assert (height - 0.5) * (width - 0.5) <= 0.2 * 4800
        erased.append(found[rows, columns].float())
    assert boxes > 10
    values = torch.cat(erased)
    assert abs(float(values.mean()) - 127.5) < 3
    assert abs(float(values.std()) - 73.6) < 3  # of uniform noise from 0 to 255
    assert abs(float(np.corrcoef(values.T.numpy())[0, 1])) < 0.05  # each channel its own


# Odd images


@pytest.mark.parametrize("size", [(10, 102), (5, 64), (1, 40), (40, 1), (1, 1), (2, 3), (3, 500)])
def test_small_and_elongated_images(size: tuple[int, int]) -> None:
    image = noise(*size, 9)
    views = [strong(image, EVERYTHING, number) for number in range(10)]
    assert all(view.shape == image.shape for view in views)
    assert sum(not torch.equal(view, image) for view in views) >= 9
    assert torch.equal(strong(image, NOTHING), image)


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_images_stay_in_range(value: int) -> None:
    """A level beyond the range would come back at its other end."""
    image = torch.full((20, 20, 3), value, dtype=torch.uint8)
    for number in range(20):
        view = strong(image, replace(EVERYTHING, erase=0.0), number).int()
        assert (
            int((view - value).abs().max()) <= 0.4 * 255 + 1
        )  # of the brightness; nothing else changes a plain image without color
        assert float(view.float().std()) < 1
