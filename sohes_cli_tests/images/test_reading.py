"""Reading of photographs: every format, mode and orientation, and every way in which a file can be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from sohes_cli.errors import ImageError
from sohes_cli.images import reading as images
from sohes_cli.images.listing import IMAGE_SUFFIXES
from sohes_cli.images.reading import read_photograph, reduced_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
RED, GREEN, BLUE, YELLOW = (230, 20, 20), (20, 200, 20), (20, 20, 220), (220, 220, 20)
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    """RGB [H, W, 3]: red and green above blue and yellow."""
    pixels = np.empty((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    pixels[:h, :w], pixels[:h, w:], pixels[h:, :w], pixels[h:, w:] = RED, GREEN, BLUE, YELLOW
    return pixels


def assert_upright(pixels: np.ndarray, tolerance: int = 12) -> None:
    h, w = pixels.shape[:2]
    for y, x, color in [
        (h // 4, w // 4, RED),
        (h // 4, 3 * w // 4, GREEN),
        (3 * h // 4, w // 4, BLUE),
        (3 * h // 4, 3 * w // 4, YELLOW),
    ]:
        assert np.abs(pixels[y, x].astype(int) - color).max() <= tolerance, (y, x, pixels[y, x], color)


def read(path: Path, working_size: int = 480) -> images.Photograph:
    photograph = read_photograph(path, path.name, working_size)
    assert photograph.pixels.dtype == np.uint8
    assert photograph.pixels.ndim == 3
    assert photograph.pixels.shape[2] == 3
    assert photograph.pixels.flags.c_contiguous
    return photograph


def raises(error: Exception) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise error

    return refuse


# Size


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 5000))
def test_reduced_size_fits_keeps_the_aspect_and_never_enlarges(height: int, width: int, working_size: int) -> None:
    h, w = reduced_size(height, width, working_size)
    assert 1 <= h <= height
    assert 1 <= w <= width
    assert h * w <= working_size**2
    assert reduced_size(width, height, working_size) == (w, h)
    if height * width <= working_size**2:
        assert (h, w) == (height, width)
    elif min(h, w) > 1:
        scale = working_size / (height * width) ** 0.5
        assert height * scale - 1 - 1e-6 <= h <= height * scale + 1e-6
        assert width * scale - 1 - 1e-6 <= w <= width * scale + 1e-6


@pytest.mark.parametrize(
    ("size", "working_size", "expected"),
    [
        ((960, 960), 480, (480, 480)),
        ((480, 480), 480, (480, 480)),
        ((481, 321), 480, (481, 321)),
        ((2000, 500), 100, (200, 50)),
        ((1, 1), 480, (1, 1)),
        ((1, 10**6), 10, (1, 100)),
        ((3, 7), 1, (1, 1)),
    ],
)
def test_reduced_size_examples(size: tuple[int, int], working_size: int, expected: tuple[int, int]) -> None:
    assert reduced_size(*size, working_size) == expected


def test_reading_reduces_by_area_average_and_keeps_the_full_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photograph = read(tmp_path / "a.png", 31)
    assert (photograph.name, photograph.height, photograph.width) == ("a.png", 120, 200)
    assert photograph.pixels.shape[:2] == reduced_size(120, 200, 31) == (24, 40)
    means = pixels.reshape(24, 5, 40, 5, 3).mean((1, 3))
    assert np.abs(photograph.pixels - means).max() <= 1


def test_a_small_image_is_returned_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png").pixels, pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif"])
def test_a_single_pixel(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (1, 1), (200, 200, 200)).save(tmp_path / f"a.{suffix}")
    photograph = read(tmp_path / f"a.{suffix}")
    assert photograph.pixels.shape == (1, 1, 3)
    assert np.abs(photograph.pixels.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_extreme_aspects(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    photograph = read(tmp_path / "a.png", 20)
    assert photograph.pixels.shape[:2] in {(400, 1), (1, 400)}
    assert (photograph.width, photograph.height) == size
    assert np.array_equal(np.unique(photograph.pixels.reshape(-1, 3), axis=0), [RED])


def test_working_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        read_photograph(tmp_path / "a.png", "a.png", 0)


# Formats and modes


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".pgm", ".pbm"}))
def test_every_color_format(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a{suffix}"
    Image.fromarray(quadrants()).save(path, **({"quality": 95} if suffix in {".jpg", ".webp", ".avif"} else {}))
    photograph = read(path)
    assert photograph.pixels.shape == (48, 64, 3)
    assert_upright(
        photograph.pixels, 60 if suffix == ".gif" else 12
    )  # a GIF is saved with a palette of Pillow's choice


def test_gray_and_bit_map_formats(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1))
    Image.fromarray(ramp).save(tmp_path / "a.pgm")
    Image.fromarray(ramp >= 128).save(tmp_path / "a.pbm")
    assert np.array_equal(read(tmp_path / "a.pgm").pixels, np.repeat(ramp[..., None], 3, 2))
    assert np.array_equal(read(tmp_path / "a.pbm").pixels[..., 1], np.where(ramp >= 128, 255, 0))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "jpg"), ("1", "png"), ("1", "tif"), ("P", "png"), ("P", "gif"), ("RGB", "tif")],
)
def test_opaque_modes_equal_pillows_own_conversion(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(quadrants()).convert(mode).save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert expected.std() > 10
    assert np.array_equal(read(path).pixels, expected)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("LA", "tif")]
)
def test_alpha_is_laid_on_white(tmp_path: Path, mode: str, suffix: str) -> None:
    alpha = np.zeros((8, 12), np.uint8)
    alpha[:, 4:8], alpha[:, 8:] = 128, 255
    image = Image.new("RGB", (12, 8), (60, 60, 60))
    image.putalpha(Image.fromarray(alpha))
    image.convert(mode).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    row = read(tmp_path / f"a.{suffix}").pixels[4].astype(int)
    assert (row[:4] == 255).all()
    assert (np.abs(row[4:8] - 157) <= 1).all()
    assert (row[8:] == 60).all()


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_palette_color_is_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("P", (6, 4), 0)
    image.putpalette([10, 10, 10, 200, 0, 0])
    image.paste(1, (3, 0, 6, 4))
    image.save(tmp_path / f"a.{suffix}", transparency=0)
    pixels = read(tmp_path / f"a.{suffix}").pixels
    assert (pixels[:, :3] == 255).all()
    assert (pixels[:, 3:] == (200, 0, 0)).all()


def test_a_palette_with_partial_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([255, 51]))
    assert read(tmp_path / "a.png").pixels[0, :, 0].tolist() == [0, 204]


def test_a_transparent_gray_and_color_key_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[5, 90]], np.uint8)).save(tmp_path / "l.png", transparency=5)
    Image.fromarray(np.array([[RED, BLUE]], np.uint8)).save(tmp_path / "rgb.png", transparency=RED)
    assert read(tmp_path / "l.png").pixels[0, :, 0].tolist() == [255, 90]
    assert read(tmp_path / "rgb.png").pixels[0].tolist() == [[255] * 3, list(BLUE)]


def cmyk(path: Path) -> None:
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, :16, 0], ink[:, 16:, 1], ink[8:, :, 3] = 255, 255, 255  # cyan, magenta; black below
    Image.fromarray(ink, "CMYK").save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def without_adobe_marker(path: Path) -> None:
    data = path.read_bytes()
    start = data.index(b"\xff\xee")
    path.write_bytes(data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :])


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_jpegs_are_inverted_and_tiffs_not(tmp_path: Path, suffix: str) -> None:
    cmyk(tmp_path / f"a.{suffix}")
    pixels = read(tmp_path / f"a.{suffix}").pixels.astype(int)
    assert np.abs(pixels[4, 4] - (0, 255, 255)).max() <= 8
    assert np.abs(pixels[4, 28] - (255, 0, 255)).max() <= 8
    assert pixels[12].max() <= 8


def test_a_cmyk_jpeg_without_adobes_marker_is_not_inverted(tmp_path: Path) -> None:
    cmyk(tmp_path / "a.jpg")
    without_adobe_marker(tmp_path / "a.jpg")
    pixels = read(tmp_path / "a.jpg").pixels.astype(
        int
    )  # ink amounts are now 255 minus those written: C 0, M Y K 255 at the left
    assert pixels[4].max() <= 8
    assert np.abs(pixels[12, 4] - (255, 0, 0)).max() <= 8
    assert np.abs(pixels[12, 28] - (0, 255, 0)).max() <= 8


DEEP = {
    "16-bit PNG": ("png", np.linspace(1000, 40000, 300).astype(np.uint16)),
    "16-bit TIFF": ("tif", np.linspace(1000, 40000, 300).astype(np.uint16)),
    "16-bit PGM": ("pgm", np.linspace(1000, 40000, 300).astype(np.uint16)),
    "int TIFF": ("tif", np.linspace(-(2**30), 2**30, 300).astype(np.int32)),
    "float TIFF": ("tif", np.linspace(-1e-3, 2e-3, 300).astype(np.float32)),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("strip_px", [2**24, 1000])
def test_deep_gray_is_stretched_linearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, strip_px: int
) -> None:
    monkeypatch.setattr(images, "_STRIP_PX", strip_px)
    suffix, ramp = DEEP[kind]
    values = np.tile(ramp, (9, 1))
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    pixels = read(tmp_path / f"a.{suffix}").pixels.astype(float)
    expected = (values.astype(float) - values.min()) / (float(values.max()) - values.min()) * 255
    assert (np.diff(pixels[..., 0], axis=1) >= 0).all()
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.abs(pixels - expected[..., None]).max() <= 0.51


def test_big_endian_16_bit_tiff(tmp_path: Path) -> None:
    values = np.tile(np.linspace(0, 65535, 64).astype(">u2"), (4, 1))
    Image.frombytes("I;16B", (64, 4), values.tobytes()).save(tmp_path / "a.tif")
    expected = np.rint(values.astype(float) / 257)
    assert np.array_equal(read(tmp_path / "a.tif").pixels[..., 0], expected)


@pytest.mark.parametrize(
    "value", [np.uint16(0), np.uint16(65535), np.int32(-7), np.float32(0.25), np.float32(np.nan), np.float32(np.inf)]
)
def test_constant_deep_images_stay_valid(tmp_path: Path, value: np.generic) -> None:
    Image.fromarray(np.full((6, 5), value)).save(tmp_path / "a.tif")
    pixels = read(tmp_path / "a.tif").pixels
    assert pixels.shape == (6, 5, 3)
    assert np.unique(pixels).size == 1


def test_values_that_are_not_finite_do_not_disturb_the_others(tmp_path: Path) -> None:
    values = np.array([[np.nan, -np.inf, 1.0, 2.0, 3.0, np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").pixels[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]


def test_the_extremes_of_float32(tmp_path: Path) -> None:
    values = np.array([[np.finfo(np.float32).min, 0, np.finfo(np.float32).max]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").pixels[0, :, 0].tolist() == [0, 128, 255]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def write_png(path: Path, rows: np.ndarray, bits: int, color_type: int, *extra: bytes) -> None:
    """A PNG of big-endian samples [H, W, channels]; Pillow cannot write 16-bit color."""
    height, width = rows.shape[:2]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, color_type, 0, 0, 0])
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + b"".join(extra)
        + png_chunk(b"IDAT", zlib.compress(body))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_color_and_alpha_png(tmp_path: Path, color_type: int, channels: int) -> None:
    samples = np.full((4, 256, channels), 0xFFFF, ">u2")
    samples[..., 0] = np.arange(256) * 257
    write_png(tmp_path / "a.png", samples, 16, color_type)
    pixels = read(tmp_path / "a.png").pixels
    assert np.array_equal(pixels[0, :, 0], np.arange(256))
    assert (pixels[..., 1] == (np.arange(256) if channels == 2 else 255)).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_animations_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in (RED, GREEN, BLUE)]
    frames[0].save(
        tmp_path / f"a.{suffix}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if suffix == "webp" else {}),
    )
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert getattr(image, "n_frames", 1) == 3
    pixels = read(tmp_path / f"a.{suffix}").pixels
    assert pixels.shape == (10, 20, 3)
    assert np.abs(pixels.astype(int) - RED).max() <= 2


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "size"),
    [("jpg", (48, 64)), ("jpg", (480, 640)), ("png", (48, 64)), ("webp", (48, 64)), ("tif", (48, 64))],
)
def test_every_exif_orientation_comes_out_upright(
    tmp_path: Path, suffix: str, size: tuple[int, int], orientation: int
) -> None:
    image = Image.fromarray(quadrants(*size))
    if orientation in UNDO:
        image = image.transpose(UNDO[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 95} if suffix in {"jpg", "webp"} else {}))
    photograph = read(tmp_path / f"a.{suffix}", 60)
    assert (photograph.height, photograph.width) == size
    assert photograph.pixels.shape[:2] == reduced_size(*size, 60)
    assert_upright(photograph.pixels)


def test_a_large_jpeg_is_decoded_at_reduced_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(quadrants(800, 1000)).save(tmp_path / "a.jpg", quality=95)
    seen = []
    real = images._reduce

    def reduce(image: Image.Image, height: int, width: int) -> np.ndarray:
        seen.append(image.size)
        return real(image, height, width)

    monkeypatch.setattr(images, "_reduce", reduce)
    photograph = read(tmp_path / "a.jpg", 100)
    assert seen == [(250, 200)]
    assert (photograph.height, photograph.width) == (800, 1000)
    assert_upright(photograph.pixels)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_undefined_orientations_count_as_upright(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(quadrants()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert_upright(read(tmp_path / "a.jpg").pixels)


# Huge images


@pytest.mark.parametrize("limit", [10, 2000])  # 3,072 pixels: an error above twice the limit, else a warning
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "ppm", "gif", "jp2"])
def test_pillows_own_limit_neither_stops_nor_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, suffix: str
) -> None:
    Image.fromarray(quadrants()).save(tmp_path / f"a.{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_upright(read(tmp_path / f"a.{suffix}").pixels, 60)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_a_tiff_above_pillows_limit_has_the_pixels_of_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int, compression: str | None
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gray = Image.fromarray(quadrants()).convert("L")
    image = Image.fromarray(np.asarray(gray, np.uint16)) if mode == "I;16" else gray.convert("RGB").convert(mode)
    image.save(tmp_path / "a.tif", exif=exif, compression=compression)
    expected = read(tmp_path / "a.tif").pixels
    with (tmp_path / "a.tif").open("rb") as file, Image.open(file) as plain:
        plain.load()
        whole = images._reduce(plain, plain.height, plain.width)
    assert np.array_equal(expected, whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(read(tmp_path / "a.tif").pixels, expected)


def test_a_limit_inside_a_decoder_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(images, "_open_image", raises(Image.DecompressionBombError("too large")))
    with pytest.raises(ImageError, match=r"a\.png holds more pixels than Pillow decodes"):
        read(tmp_path / "a.png")


def test_reads_in_threads_leave_pillow_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    filters = list(warnings.filters)

    def work(_: int) -> None:
        for _ in range(20):
            assert_upright(read(tmp_path / "a.png").pixels)
            with pytest.raises(ImageError):
                read(tmp_path / "bad.png")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert Image.MAX_IMAGE_PIXELS == 10
    assert list(warnings.filters) == filters


def test_an_image_above_the_limit_is_refused_before_decoding(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((1, 1), np.uint8), 8, 0)
    data = (tmp_path / "a.png").read_bytes()
    size = (40_000).to_bytes(4, "big") + (30_000).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data[:8] + png_chunk(b"IHDR", size + data[24:29]) + data[33:])
    with pytest.raises(ImageError, match=r"a\.png holds 30000 x 40000 pixels; at most 1,000,000,000 pixels are read"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("limit", [3072, 3071])
def test_the_limit_itself_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_MAX_PX", limit)
    if limit == 3072:
        assert_upright(read(tmp_path / "a.png").pixels)
    else:
        with pytest.raises(ImageError, match="at most 3,071 pixels"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK"])
def test_images_reduced_in_strips_look_like_those_reduced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    smooth = np.random.default_rng(2).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((450, 343), Image.Resampling.BICUBIC).convert(mode)
    image.save(tmp_path / "a.tif")
    at_once = read(tmp_path / "a.tif", 40).pixels.astype(int)
    monkeypatch.setattr(images, "_STRIP_PX", 10_000)
    in_strips = read(tmp_path / "a.tif", 40).pixels.astype(int)
    assert in_strips.shape == at_once.shape == (*reduced_size(343, 450, 40), 3)
    assert np.abs(in_strips - at_once).mean() < 3
    assert at_once.std() > 20


# Bad input


def jpeg_bytes(tmp_path: Path, **options: object) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg", **options)
    return (tmp_path / "whole.jpg").read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp", "ppm", "jp2", "avif"])
@pytest.mark.parametrize("kept", [0.7, 0.01])
def test_truncated_files(tmp_path: Path, suffix: str, kept: float) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    noise = np.random.default_rng(3).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=rf"^cut\.{suffix} is .*\.") as caught:
        read(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("working_size", [480, 20])
def test_a_truncated_jpeg_is_called_damaged(tmp_path: Path, working_size: int) -> None:
    data = jpeg_bytes(tmp_path)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.jpg is damaged: image file is truncated"):
        read(tmp_path / "cut.jpg", working_size)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
@pytest.mark.parametrize(
    "content",
    [b"just a text, not a photograph\n" * 20, b"\0" * 500, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
)
def test_other_content_under_an_image_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"^a\{suffix} is no image that can be decoded"):
        read(path)


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match=r"a\.jpg is empty \(0 bytes\)"):
        read(tmp_path / "a.jpg")


def test_vanished_files_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist"):
        read(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("folder.jpg", "pipe.jpg"):
        with pytest.raises(ImageError, match=f"{name} is not a regular file"):
            read(tmp_path / name)


@needs_permissions
def test_a_forbidden_file(tmp_path: Path) -> None:
    jpeg_bytes(tmp_path)
    (tmp_path / "whole.jpg").chmod(0)
    with pytest.raises(ImageError, match=r"whole\.jpg may not be read: permission denied"):
        read(tmp_path / "whole.jpg")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "may not be read: permission denied"),
        (OSError(5, "Input/output error"), "is damaged: input/output error"),
        (MemoryError(), "does not fit into memory"),
        (KeyError("x"), "is damaged: 'x'"),
        (SyntaxError("broken\n  chunk."), r"is damaged: broken chunk\."),
        (ValueError(), "is damaged: ValueError"),
    ],
)
def test_whatever_the_decoder_raises_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    jpeg_bytes(tmp_path)
    monkeypatch.setattr(images, "_open_image", raises(error))
    with pytest.raises(ImageError, match=rf"^whole\.jpg {message}") as caught:
        read(tmp_path / "whole.jpg")
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("with_jfif", [True, False])
def test_corrupt_exif(tmp_path: Path, with_jfif: bool) -> None:
    data = jpeg_bytes(tmp_path, exif=b"Exif\0\0" + b"\xde\xad\xbe\xef" * 6)
    if not with_jfif:
        start = data.index(b"\xff\xe0")
        data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.jpg has corrupt EXIF data, so its orientation is unknown"):
        read(tmp_path / "a.jpg")


def test_flipped_bytes_give_pixels_or_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MAX_PX", 10**6)  # a flipped size costs seconds otherwise
    rng = np.random.default_rng(4)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "description"
    kinds, messages = set(), []
    for suffix in ("jpg", "png", "webp", "tif", "gif", "bmp", "ppm", "jp2"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(quadrants(24, 32)).save(
            path, **({"exif": exif} if suffix in {"jpg", "png", "webp", "tif"} else {})
        )
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 300), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(data.tobytes())
            try:
                kinds.add(read(path, 16).pixels.dtype)
            except ImageError as error:
                messages.append(str(error))
    assert kinds == {np.dtype(np.uint8)}
    assert messages
    assert all(message.startswith("a.") and "\n" not in message for message in messages)


NOISY = """
import sys
from pathlib import Path
from sohes_cli.errors import ImageError
from sohes_cli.images.reading import read_photograph
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_photograph(path, path.name, 64)
    except ImageError:
        pass
"""


def test_nothing_leaks_to_the_terminal(tmp_path: Path) -> None:
    """Python's warnings, Pillow's log records and C libraries are silent on good and damaged files.

    The exception, left out here, is libtiff, which prints a line about damaged compressed pixels.
    """
    exif = (
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x0e\x01\x02\0\xff\xff\0\0\xff\0\0\0\x12\x01"  # cut off within its second entry
    )
    whole = jpeg_bytes(tmp_path, exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(tmp_path / "whole.jpg") as image:
            image.getexif()
    assert caught  # else this file would test nothing
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "garbled.jpg").write_bytes(whole[:1500] + bytes(200) + whole[1700:])
    image = Image.fromarray(quadrants())
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", None):
        path = tmp_path / f"{compression}.tif"
        image.save(path, compression=compression)
        data = path.read_bytes()
        if compression is None:
            (tmp_path / "cut.tif").write_bytes(data[: len(data) * 2 // 3])
            (tmp_path / "garbled.tif").write_bytes(data[:20] + bytes(30) + data[50:])
        image.save(tmp_path / f"tagged-{compression}.tif", compression=compression, tiffinfo={65000: "an unknown tag"})
    image.save(tmp_path / "a.jp2")
    (tmp_path / "cut.jp2").write_bytes((tmp_path / "a.jp2").read_bytes()[:200])
    (tmp_path / "empty.jpg").touch()
    result = subprocess.run([sys.executable, "-c", NOISY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
