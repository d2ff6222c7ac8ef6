"""Inputs of segmentation: files and folders on the command line; a path, Pillow image or array in Python."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from sohes_cli.errors import SohesError, printable
from sohes_cli.images.listing import list_images, require_images
from sohes_cli.images.reading import Photograph, read_photograph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ImageInput", "ImageSet", "as_photograph", "gather_images"]

ImageInput: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8] | Photograph"

_UNNAMED = "image"
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True)
class ImageSet:
    """Images below one folder.

    Args:
        root: the folder, absolute.
        names: their paths relative to it, with forward slashes, in code point order, each once.
        unreadable: (relative name, reason) of each folder or image that cannot be listed.
    """

    root: Path
    names: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names) + len(self.unreadable)


def gather_images(paths: Sequence[Path], out: Path | None = None) -> ImageSet:
    """The images that files and folders name, folders with all their sub-folders.

    Args:
        paths: at least one file or folder; a file counts as an image whatever its suffix.
        out: a folder in which pictures are written; those that folders hold there are none to be read.

    Returns:
        The images below the deepest folder that holds all files and folders given.

    Raises:
        UsageError: if a path does not exist.
        SohesError: if a folder may not be read or holds no image, or all images lie in `out`.
    """
    require_images(paths)
    places = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (a link keeps its own name)
    root = Path(os.path.commonpath([place if place.is_dir() else place.parent for place in places]))
    written = None if out is None else Path(os.path.abspath(out))  # noqa: PTH100
    names: set[str] = set()
    unreadable: set[tuple[str, str]] = set()
    for place in places:
        inside = place.relative_to(root)
        if place.is_dir():
            listing = list_images(place)
            names.update((inside / name).as_posix() for name in listing.names if written not in (place / name).parents)
            unreadable.update(((inside / name).as_posix(), reason) for name, reason in listing.unreadable)
        elif (name := inside.as_posix()) == printable(name):
            names.add(name)
        else:
            unreadable.add((printable(name), "its name is not valid UTF-8"))
    if not names and not unreadable:
        raise SohesError(
            f"All images lie in {printable(out)}, where pictures are written.", "Choose another --out, or other images."
        )
    return ImageSet(root, tuple(sorted(names)), tuple(sorted(unreadable)))


def as_photograph(image: ImageInput, working_size: int) -> Photograph:
    """Upright RGB pixels of an image in any form.

    Args:
        image: a path, a Pillow image, RGB as uint8 [H, W, 3], or a photograph that has been read, which is given back.
        working_size: square root of the number of pixels to which a file is reduced.

    Raises:
        ImageError: if a file cannot be read.
        TypeError: if the image is of another type.
        ValueError: if an array has another shape or type, or a Pillow image more than 8 bits a channel.
    """
    if isinstance(image, Photograph):
        return image
    if isinstance(image, str | Path):
        return read_photograph(Path(image), Path(image).name, working_size)
    if isinstance(image, Image.Image):
        name, pixels = Path(str(getattr(image, "filename", ""))).name, _rgb(image)
    elif isinstance(image, np.ndarray):
        name, pixels = "", image
    else:
        raise TypeError(f"an image is a path, a Pillow image or an array, not {type(image).__name__}")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"an array must be RGB, uint8 [H, W, 3], not {pixels.dtype} of shape {pixels.shape}")
    return Photograph(name or _UNNAMED, np.ascontiguousarray(pixels), *pixels.shape[:2])


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Turned by its EXIF orientation and laid on white where it is transparent, as files are."""
    if image.mode not in _EIGHT_BITS:
        raise ValueError(
            f"a Pillow image of mode {image.mode} has no 8-bit colors; give the path of its file, or convert it"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))
