"""Image files decoded to upright 8-bit RGB at working size.

Any photograph that Pillow decodes (gray, palette, transparent, CMYK, 16-bit, float, animated, rotated by EXIF, up to a
gigapixel) is converted and reduced by area averaging. The paper (Cao et al. 2024) reads SA-1B's JPEGs and does not
describe this step.
"""

from __future__ import annotations

import logging
import stat
import struct
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageChops, TiffImagePlugin, UnidentifiedImageError

from sohes_cli.errors import ImageError, SohesError, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

__all__ = ["Photograph", "decode_photograph", "read_photograph", "reduced_size"]

# An explicit list: Pillow would run Ghostscript on a PostScript file under an image's name. MPO opens as JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "MPO")
_DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
_MAX_PX = 10**9
_STRIP_PX = 2**24
_EXIF_ORIENTATION = 0x0112
_REPLACE = "Replace the file or remove it from the folder."
_REDUCE = "Reduce the image or cut it into tiles."

# Pillow's remarks on damaged metadata name no file; by default, its log records and warnings go to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class Photograph:
    """One upright image.

    Args:
        name: path relative to the image folder, with forward slashes.
        pixels: RGB at working size, uint8 [H, W, 3].
        height: rows of the full-size image, after EXIF rotation.
        width: columns of the full-size image, after EXIF rotation.
    """

    name: str
    pixels: NDArray[np.uint8]
    height: int
    width: int


def read_photograph(path: Path, name: str, working_size: int) -> Photograph:
    """Read an image file as upright 8-bit RGB.

    Transparent pixels are composited on white; 16-bit and 32-bit gray is stretched linearly from its smallest to its
    largest finite value; only the first frame of an animation is read.

    Args:
        path: image file.
        name: its path relative to the image folder, for the result and for messages.
        working_size: square root of the largest pixel count of the result, at least 1; smaller images keep their size.

    Raises:
        ImageError: if the file is missing, empty, forbidden, damaged, no image, or larger than one gigapixel.
        ValueError: if `working_size` is less than 1.
    """
    return decode_photograph(lambda: _open_file(path, name), name, working_size)


def decode_photograph(open_file: Callable[[], BinaryIO], name: str, working_size: int) -> Photograph:
    """Read an image like `read_photograph`, from the binary file that `open_file` opens; errors become ImageErrors."""
    if working_size < 1:
        raise ValueError(f"working_size must be at least 1, not {working_size}")
    with _image_errors(name), open_file() as file, _open_image(file) as image:
        full_width, full_height = image.size
        _require_affordable(full_height, full_width, name)
        height, width = reduced_size(full_height, full_width, working_size)
        image.draft(image.mode, (2 * width, 2 * height))  # decodes a JPEG at 1/2, 1/4 or 1/8, still twice the target
        _load(image)
        orientation = _orientation(image, name)
        pixels = _turn(_reduce(image, height, width), orientation)
    if orientation >= 5:
        full_height, full_width = full_width, full_height
    return Photograph(name, pixels, full_height, full_width)


def reduced_size(height: int, width: int, working_size: int) -> tuple[int, int]:
    """Return the largest (height, width) of the same aspect with at most `working_size` squared pixels, never enlarged.

    Sides are rounded down to whole pixels, at least 1; exact integer arithmetic gives the same size on every machine.
    """
    budget_px = working_size**2
    if height * width <= budget_px:
        return height, width
    h = max(1, isqrt(budget_px * height // width))
    w = max(1, isqrt(budget_px * width // height))
    return min(h, budget_px), min(w, budget_px)


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn every error of opening and decoding into an ImageError."""
    try:
        yield
    except SohesError:
        raise
    except FileNotFoundError as error:
        message = f"{name} does not exist (any more)."
        raise ImageError(message, "Run the command again when the folder is complete.") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read: permission denied.", "Grant read permission on it.") from error
    except UnidentifiedImageError as error:
        message = f"{name} is no image that can be decoded: damaged, of an unsupported kind, or another type of file."
        raise ImageError(message, _REPLACE) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} holds more pixels than Pillow decodes.", _REDUCE) from error
    except (MemoryError, cv2.error) as error:
        message = f"{name} does not fit into memory."
        raise ImageError(message, "Free memory, use fewer processes, or reduce the image.") from error
    except (
        Exception
    ) as error:  # Pillow's decoders raise errors of any type on damaged files, also SyntaxError and KeyError
        raise ImageError(f"{name} is damaged: {reason_of(error)}.", _REPLACE) from error


def _open_file(path: Path, name: str) -> BinaryIO:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name} is not a regular file.", _REPLACE)  # opening a pipe would block
    if status.st_size == 0:
        raise ImageError(f"{name} is empty (0 bytes).", _REPLACE)
    return path.open("rb")


def _open_image(file: BinaryIO) -> ImageFile:
    """Open an image by its content, like `Image.open` but without its size limit, which is global to the process."""
    Image.init()
    prefix = file.read(16)
    for factory, accepts in (Image.OPEN[name] for name in _FORMATS if name in Image.OPEN):  # AVIF came with Pillow 11.3
        try:
            accepted = accepts is None or accepts(prefix)
            if accepted and not isinstance(accepted, str):  # a string names a missing codec
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # a file of another format
    raise UnidentifiedImageError


def _require_affordable(height: int, width: int, name: str) -> None:
    if height * width > _MAX_PX:
        message = f"{name} holds {height} x {width} pixels; at most {_MAX_PX:,} pixels are read."
        raise ImageError(message, _REDUCE)


def _load(image: ImageFile) -> None:
    """Decode the pixels, allocating a TIFF's here, because Pillow checks its size limit again on allocation."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        stored_size = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
        image.im = Image.new(image.mode, stored_size, None).im
    image.load()


def _orientation(image: Image.Image, name: str) -> int:
    """EXIF orientation still to be applied, in 1..8; undefined values count as 1, upright."""
    try:
        block = image.info.get("exif")
        if block:
            Image.Exif().load(block)  # getexif() is silent about a block that it failed to parse before
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # the parser raises SyntaxError, KeyError, struct.error and others
        message = f"{name} has corrupt EXIF data, so its orientation is unknown: {reason_of(error)}."
        raise ImageError(message, "Repair the file's EXIF data or remove it, for example with exiftool.") from error
    return int(value) if value in range(1, 9) else 1


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation (1..8) to pixels [H, W, 3]."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _reduce(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Convert to RGB [height, width, 3] by area averaging.

    Beyond `_STRIP_PX` pixels, strips are converted one by one and reduced at once by an integer factor, to at least
    twice the target, so only one strip is held beside the decoded image.
    """
    is_small = image.height * image.width <= _STRIP_PX
    factor = 1 if is_small else max(1, min(image.height // height, image.width // width) // 2)
    rows = max(1, _STRIP_PX // image.width // factor) * factor
    low, high = _value_range(image, rows) if image.mode in _DEEP_MODES else (0.0, 0.0)
    strips = []
    for strip in _strips(image, rows):
        pixels = _stretch(strip, low, high) if image.mode in _DEEP_MODES else _to_rgb(strip, image)
        strips.append(_area_average(pixels, -(-strip.height // factor), -(-strip.width // factor)))
    return _area_average(np.concatenate(strips), height, width)


def _strips(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _area_average(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _to_rgb(strip: Image.Image, source: Image.Image) -> NDArray[np.uint8]:
    """Convert 8-bit pixels of any mode to RGB [rows, W, 3]."""
    if strip.has_transparency_data:
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
    elif strip.mode == "CMYK" and source.format in {"JPEG", "MPO"} and "adobe" not in source.info:
        strip = ImageChops.invert(strip)  # Pillow inverts every CMYK JPEG, but only Adobe's are stored inverted
    return np.asarray(strip.convert("RGB"))


def _value_range(image: Image.Image, rows: int) -> tuple[float, float]:
    """Smallest and largest finite gray value; (0, 0) without any."""
    low, high = np.inf, -np.inf
    for strip in _strips(image, rows):
        values: NDArray[Any] = np.asarray(strip)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _stretch(strip: Image.Image, low: float, high: float) -> NDArray[np.uint8]:
    """Map gray values low..high to 0..255 in RGB [rows, W, 3]; NaN, and all values of a constant image, become 0."""
    gray = (np.asarray(strip, dtype=np.float64) - low) * (255.0 / (high - low) if high > low else 1.0)
    gray = np.nan_to_num(gray, nan=0.0, posinf=255.0, neginf=0.0).clip(0.0, 255.0)
    return np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)
