"""Changes of colors against formulas on single pixels, and blur against OpenCV."""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.color import rgb2yiq

from sohes_cli.data.photometric import change_colors, draw_colors
from sohes_cli.pretrain.config import ViewsConfig
from sohes_cli.vit.build import IMAGENET_MEAN, IMAGENET_STD, normalized

PLAIN = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue, gray, blur
LUMA = torch.tensor([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def view() -> torch.Tensor:
    """A crop of a photograph whose values leave room for changes, float [1, 3, 56, 56]."""
    pixels = torch.from_numpy(data.astronaut()[:56, 200:256].copy()).permute(2, 0, 1)[None] / 255
    return 0.3 + 0.4 * pixels


def changed(view: torch.Tensor, **changes: float) -> torch.Tensor:
    names = ("brightness", "contrast", "saturation", "hue", "gray", "blur")
    values = dict(zip(names, PLAIN, strict=True)) | changes
    return change_colors(view, torch.tensor([[values[name] for name in names]]))


def gray_of(view: torch.Tensor) -> torch.Tensor:
    return (LUMA.view(1, 3, 1, 1) * view).sum(1, keepdim=True)


def test_nothing_drawn_changes_nothing(view: torch.Tensor) -> None:
    torch.testing.assert_close(changed(view), view, atol=1e-5, rtol=0)


def test_brightness_multiplies(view: torch.Tensor) -> None:
    torch.testing.assert_close(changed(view, brightness=1.3), view * 1.3, atol=1e-5, rtol=0)


def test_contrast_scales_around_the_mean_gray(view: torch.Tensor) -> None:
    mean = gray_of(view).mean()
    torch.testing.assert_close(changed(view, contrast=0.7), mean + 0.7 * (view - mean), atol=1e-5, rtol=0)


def test_saturation_scales_around_the_gray_of_each_pixel(view: torch.Tensor) -> None:
    gray = gray_of(view)
    torch.testing.assert_close(changed(view, saturation=1.2), gray + 1.2 * (view - gray), atol=1e-5, rtol=0)


def test_without_color_all_channels_are_the_gray(view: torch.Tensor) -> None:
    torch.testing.assert_close(changed(view, gray=1.0), gray_of(view).expand(-1, 3, -1, -1), atol=1e-5, rtol=0)


def test_hue_turns_colors_keeps_gray_and_comes_round() -> None:
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1).expand(-1, -1, 4, 4)
    third = changed(red, hue=1 / 3)[0, :, 0, 0]
    assert int(third.argmax()) != 0
    hue = colorsys.rgb_to_hsv(*third.tolist())[0]
    assert min(abs(hue - 1 / 3), abs(hue - 2 / 3)) < 0.08  # YIQ's circle is not quite that of HSV
    torch.testing.assert_close(gray_of(changed(red, hue=0.2)), gray_of(red), atol=2e-3, rtol=0)
    torch.testing.assert_close(changed(red, hue=1.0), red, atol=1e-4, rtol=0)
    flat = torch.full((1, 3, 4, 4), 0.5)
    torch.testing.assert_close(changed(flat, hue=0.1), flat, atol=2e-3, rtol=0)


def test_blur_is_a_gaussian_of_the_drawn_width(view: torch.Tensor) -> None:
    sigma = 2.0 * 56 / 224  # drawn for a view of 224 pixels
    expected = cv2.GaussianBlur(view[0].permute(1, 2, 0).numpy(), (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    found = changed(view, blur=2.0)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("size", [16, 56])
def test_blurs_of_a_batch_are_the_gaussians_of_scipy(view: torch.Tensor, size: int) -> None:
    sigmas = (0.1, 0.7, 1.3, 2.0)
    views = torch.cat([view, view.flip(3), 1 - view, view.flip(2)])[..., :size, :size]
    colors = torch.tensor([[*PLAIN[:5], sigma] for sigma in sigmas])
    radius = max(1, math.ceil(5 * size / 224))  # two and a half of the widest
    for before, after, sigma in zip(views, change_colors(views, colors), sigmas, strict=True):
        expected = [
            gaussian_filter(channel, sigma * size / 224, radius=radius, mode="mirror")
            for channel in before.double().numpy()
        ]
        np.testing.assert_allclose(after, np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "enhance"), [("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color")]
)
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_changes_are_those_of_pillow(view: torch.Tensor, name: str, enhance: str, factor: float) -> None:
    pixels = (view * 255).round().byte()
    expected = getattr(ImageEnhance, enhance)(Image.fromarray(pixels[0].permute(1, 2, 0).numpy())).enhance(factor)
    found = changed(pixels.float() / 255, **{name: factor})[0].permute(1, 2, 0) * 255
    np.testing.assert_allclose(
        found, np.asarray(expected, np.float32), atol=1.6
    )  # Pillow rounds the gray, then the result


@pytest.mark.parametrize("hue", [-0.1, 0.05, 0.25])
def test_hue_turns_the_chroma_plane_and_keeps_luma_and_chroma(view: torch.Tensor, hue: float) -> None:
    before, after = (
        torch.from_numpy(rgb2yiq(v[0].double().numpy(), channel_axis=0)) for v in (view, changed(view, hue=hue))
    )
    torch.testing.assert_close(after[0], before[0], atol=1e-3, rtol=0)
    chroma = [torch.complex(v[1], v[2]) for v in (before, after)]
    torch.testing.assert_close(chroma[1], chroma[0] * torch.exp(torch.tensor(2j * math.pi * hue)), atol=2e-3, rtol=0)


def test_all_changes_together_are_one_after_the_other_and_contrast_last(view: torch.Tensor) -> None:
    steps = changed(changed(changed(view, saturation=0.8), hue=0.07), brightness=0.9)
    for gray in (0.0, 1.0):
        expected = changed(changed(steps, gray=gray), contrast=1.2)
        found = changed(view, saturation=0.8, hue=0.07, brightness=0.9, gray=gray, contrast=1.2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_changes_of_any_strength_stay_in_range_and_are_finite() -> None:
    extreme = torch.tensor(
        [[1.8, 1.8, 1.4, 0.2, 0, 0], [0, 0, 0, 0, 0, 0], [1.8, 1.8, 0, -0.2, 1, 2], [0.2, 1.8, 1.4, 0.1, 0, 0.1]]
    )
    views = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).round()
    found = change_colors(views, extreme)
    assert bool(found.isfinite().all())
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)


def test_a_view_does_not_depend_on_the_others(view: torch.Tensor) -> None:
    rng = np.random.default_rng(0)
    config = ViewsConfig(blur=0.5)
    colors = torch.from_numpy(np.stack([draw_colors(config, rng) for _ in range(6)]))
    views = torch.cat([view, view.flip(3), view * 0.5, view, view, view.flip(2)])
    together = change_colors(views, colors)
    alone = torch.cat([change_colors(views[i : i + 1], colors[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1


def test_draws_stay_in_their_ranges_and_zero_probabilities_draw_nothing() -> None:
    rng = np.random.default_rng(1)
    drawn = np.stack([draw_colors(ViewsConfig(jitter=1.0, grayscale=0.3, blur=0.4), rng) for _ in range(500)])
    assert (np.abs(drawn[:, :2] - 1) <= 0.4).all()
    assert (np.abs(drawn[:, 2] - 1) <= 0.2).all()
    assert (np.abs(drawn[:, 3]) <= 0.1).all()
    assert 0.2 < drawn[:, 4].mean() < 0.4
    assert 0.3 < (drawn[:, 5] > 0).mean() < 0.5
    assert drawn[:, 5].max() <= 2.0
    none = ViewsConfig(jitter=0, grayscale=0, blur=0)
    assert all(tuple(draw_colors(none, rng)) == PLAIN for _ in range(50))


def test_normalized_pixels_have_imagenets_mean_and_deviation() -> None:
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = torch.stack([mean, mean + std]).view(2, 3, 1, 1)
    torch.testing.assert_close(normalized(pixels).flatten(1), torch.tensor([[0.0] * 3, [1.0] * 3]), atol=1e-5, rtol=0)
