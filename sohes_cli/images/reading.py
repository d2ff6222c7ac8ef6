"""The photographs of a folder: which there are, and each of them as upright RGB pixels at working size.

Listing walks a folder tree and yields names on which every machine agrees, so that processes can share the images by name.
Reading turns any file that Pillow decodes (gray, palette, transparent, CMYK, 16-bit, float, animated, rotated by EXIF, hundreds of
megapixels) into 8-bit RGB, reduced by area averaging. The paper (Cao et al. 2024) reads SA-1B's JPEGs and says nothing of this step.
"""

from __future__ import annotations

import ctypes
import logging
import stat
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import cv2
import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError, _imaging

from sohes_cli.errors import ImageError, SohesError, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Photograph", "decode_photograph", "read_photograph", "reduced_size"]

# Named one by one because Pillow would otherwise run Ghostscript on a PostScript file that calls itself a photograph.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "MPO")
_DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
_MAX_PX = 10**9
_STRIP_PX = 2**24
_EXIF_ORIENTATION = 0x0112
_REPLACE = "Replace the file or remove it from the folder."

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints Pillow's records to stderr by itself


@dataclass(frozen=True)
class Photograph:
    """One image, upright.

    Args:
        name: its path relative to the image folder, with forward slashes.
        pixels: RGB at working size, uint8 [H, W, 3].
        height: rows of the file's image after its EXIF rotation.
        width: columns of the file's image after its EXIF rotation.
    """

    name: str
    pixels: NDArray[np.uint8]
    height: int
    width: int


def read_photograph(path: Path, name: str, working_size: int) -> Photograph:
    """Read one image file as upright 8-bit RGB.

    Transparent images are laid on white; 16-bit and 32-bit gray is stretched linearly from its least to its greatest finite value;
    of an animation the first frame is taken.

    Args:
        path: the file.
        name: its path relative to the image folder, used in the result and in messages.
        working_size: the square root of the largest pixel count of the result, at least 1; smaller images keep their size.

    Raises:
        ImageError: if the file is missing, empty, forbidden, damaged, no image, or larger than one gigapixel.
        ValueError: if `working_size` is less than 1.
    """
    return decode_photograph(lambda: _open_content(path, name), name, working_size)


def decode_photograph(open_file: Callable[[], BinaryIO], name: str, working_size: int) -> Photograph:
    """Read one image as `read_photograph` does, from the binary file that `open_file` returns, whose errors become ImageErrors too."""
    if working_size < 1:
        raise ValueError(f"working_size must be at least 1, not {working_size}")
    with _PILLOW, _image_errors(name), open_file() as file, Image.open(file, formats=_available_formats()) as image:
        full_width, full_height = image.size
        _require_affordable(full_height, full_width, name)
        height, width = reduced_size(full_height, full_width, working_size)
        image.draft(
            image.mode, (2 * width, 2 * height)
        )  # a JPEG decodes faster at 1/2, 1/4 or 1/8; twice the target keeps it sharp
        image.load()
        orientation = _orientation(image, name)
        pixels = _turn(_reduce(image, height, width), orientation)
    if orientation >= 5:
        full_height, full_width = full_width, full_height
    return Photograph(name, pixels, full_height, full_width)


def reduced_size(height: int, width: int, working_size: int) -> tuple[int, int]:
    """Return the largest (height, width) of the same aspect with at most `working_size` squared pixels, never larger than the input.

    Sides are rounded down to whole pixels and are at least 1; the arithmetic is exact, so every machine gets the same size.
    """
    budget_px = working_size**2
    if height * width <= budget_px:
        return height, width
    h = max(1, isqrt(budget_px * height // width))
    w = max(1, isqrt(budget_px * width // height))
    return min(h, budget_px), min(w, budget_px)


class _QuietPillow:
    """Lifts Pillow's size limit, whose place `_MAX_PX` takes, and mutes its warnings while at least one thread reads.

    These settings belong to the whole process: the first reader in changes them, the last one out puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._set_handler = _libtiff_error_handler()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._handler = self._set_handler(None)
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._set_handler(self._handler)
                Image.MAX_IMAGE_PIXELS = self._limit
                self._filters.__exit__(None, None, None)


def _libtiff_error_handler() -> Callable[[int | None], int | None]:
    """libtiff's setter of the function that prints its errors, which returns the one before; Pillow raises those errors as well."""
    try:
        setter = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (
        AttributeError,
        OSError,
    ):  # a Pillow without libtiff, or one that hides its symbols: then there is nothing to set
        return lambda handler: handler
    setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return cast("Callable[[int | None], int | None]", setter)


_PILLOW = _QuietPillow()


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    try:
        yield
    except SohesError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            f"{name} does not exist (any more).", "Run the command again when the folder is complete."
        ) from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read: permission denied.", "Grant read permission on it.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is no image that can be decoded: damaged, of an unsupported kind, or another type of file.",
            _REPLACE,
        ) from error
    except (MemoryError, cv2.error) as error:
        raise ImageError(
            f"{name} does not fit into memory.", "Free memory, use fewer processes, or reduce the image."
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over, SyntaxError and KeyError included
        raise ImageError(f"{name} is damaged: {reason_of(error)}.", _REPLACE) from error


def _available_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # AVIF came with Pillow 11.3


def _open_content(path: Path, name: str) -> BinaryIO:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name} is not a regular file.", _REPLACE)  # opening a pipe would wait forever
    if status.st_size == 0:
        raise ImageError(f"{name} is empty (0 bytes).", _REPLACE)
    return path.open("rb")


def _require_affordable(height: int, width: int, name: str) -> None:
    if height * width > _MAX_PX:
        message = f"{name} holds {height} x {width} pixels; at most {_MAX_PX:,} pixels are read."
        raise ImageError(message, "Reduce the image or cut it into tiles.")


def _orientation(image: Image.Image, name: str) -> int:
    """The EXIF orientation that is still to be applied, in 1..8; values that EXIF does not define count as 1, upright."""
    try:
        block = image.info.get("exif")
        if block:
            Image.Exif().load(block)  # getexif() keeps silent about a block that failed to parse before
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

    An image of more than `_STRIP_PX` pixels is converted strip by strip and reduced at once by a whole factor, to at least twice the wanted
    size, so that beside the decoded image only a strip is held.
    """
    factor = (
        1 if image.height * image.width <= _STRIP_PX else max(1, min(image.height // height, image.width // width) // 2)
    )
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
        strip = ImageChops.invert(strip)  # Pillow takes every CMYK JPEG for an inverted one; only Adobe's are
    return np.asarray(strip.convert("RGB"))


def _value_range(image: Image.Image, rows: int) -> tuple[float, float]:
    """The least and the greatest finite gray value; (0, 0) if none is finite."""
    low, high = np.inf, -np.inf
    for strip in _strips(image, rows):
        values: NDArray[Any] = np.asarray(strip)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _stretch(strip: Image.Image, low: float, high: float) -> NDArray[np.uint8]:
    """Map gray values low..high to 0..255 in RGB [rows, W, 3]; NaN, and every value of a constant image, becomes 0."""
    gray = (np.asarray(strip, dtype=np.float64) - low) * (255.0 / (high - low) if high > low else 1.0)
    gray = np.nan_to_num(gray, nan=0.0, posinf=255.0, neginf=0.0).clip(0.0, 255.0)
    return np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)
