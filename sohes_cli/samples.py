"""A handful of free sample photographs, so that a newcomer has input at hand without any download.

They are color photographs from scikit-image's installed package, each in the public domain or under CC0 according to its documentation
in `skimage.data`; those that need a download (through pooch) or state no license are left out.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from PIL import Image

from sohes_cli.errors import SohesError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LICENSES_NAME", "SAMPLES", "Sample", "write_samples"]

LICENSES_NAME = "LICENSES.txt"


@dataclass(frozen=True)
class Sample:
    """One sample photograph.

    Args:
        name: file name that it is written under.
        source: its file in scikit-image's data folder.
        license: who made it, the terms, and where it comes from, in one line.
    """

    name: str
    source: str
    license: str


SAMPLES = (
    Sample("astronaut.jpg", "astronaut.png", "Eileen Collins, by NASA; public domain; https://flic.kr/p/r9qvLn"),
    Sample("chelsea.jpg", "chelsea.png", "Chelsea the cat, by Stefan van der Walt; CC0; distributed with scikit-image"),
    Sample(
        "coffee.jpg",
        "coffee.png",
        "Coffee cup, by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0; distributed with scikit-image",
    ),
    Sample(
        "hubble_deep_field.jpg",
        "hubble_deep_field.jpg",
        "Hubble eXtreme Deep Field, by NASA; public domain; http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    ),
    Sample(
        "retina.jpg",
        "retina.jpg",
        "Human retina, by Mikael Häggström; CC0 1.0; https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
    ),
    Sample(
        "rocket.jpg",
        "rocket.jpg",
        "Launch of DSCOVR on a Falcon 9, by SpaceX; public domain; https://www.flickr.com/photos/spacexphotos/16511594820",
    ),
)


def write_samples(folder: Path) -> list[Path]:
    """Write the sample photographs as JPEG files, and their licenses in `LICENSES.txt`, into a folder that is made if missing.

    Nothing is written if any file would have to be replaced; files that are there already with the same content are left alone.

    Returns:
        The files written now, in order of name; empty if all were there.

    Raises:
        UsageError: if `folder` is a file.
        SohesError: if a different file of a sample's name is there, scikit-image lacks a photograph, or the folder cannot be written.
    """
    contents = {sample.name: _jpeg(sample) for sample in SAMPLES}
    contents[LICENSES_NAME] = "".join(f"{sample.name}: {sample.license}\n" for sample in SAMPLES).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = [folder / name for name in sorted(contents) if not _is_there(folder / name, contents[name])]
        for path in missing:
            _write_atomically(path, contents[path.name])
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} cannot be a folder: {error.filename} is a file.", "Name another folder.") from error
    except OSError as error:
        raise SohesError(
            f"The samples cannot be written to {folder}: {error.strerror}.", "Name a folder that you may write to."
        ) from error
    return missing


def _jpeg(sample: Sample) -> bytes:
    """The photograph as a JPEG file: scikit-image's own where it has one, else its pixels at quality 95."""
    source = files("skimage").joinpath("data", sample.source)
    try:
        content = source.read_bytes()
    except OSError as error:
        message = f"The installed scikit-image does not carry the photograph {sample.source} ({source})."
        raise SohesError(
            message, "Install scikit-image from PyPI: pip install --force-reinstall scikit-image"
        ) from error
    if sample.source.endswith(".jpg"):
        return content
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _is_there(path: Path, content: bytes) -> bool:
    """Whether the file exists with that content.

    Raises:
        SohesError: if something else is in its place.
    """
    if not os.path.lexists(path):
        return False
    if path.is_file() and path.read_bytes() == content:
        return True
    raise SohesError(
        f"{path} exists and is not the sample of that name.", "Name another folder, or move that file away."
    )


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all; its hidden temporary file is no image to the other commands."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
