"""Free sample photographs for a first run, without a download.

They are the color photographs of the installed scikit-image that `skimage.data` documents as public domain or CC0.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from PIL import Image

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.runs.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LICENSES_NAME", "SAMPLES", "Sample", "write_samples"]

LICENSES_NAME = "LICENSES.txt"


@dataclass(frozen=True)
class Sample:
    """One sample photograph.

    Args:
        name: name of the written file.
        source: file in scikit-image's data folder.
        license: author, terms and origin, in one line.
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
        "Hubble eXtreme Deep Field, by NASA; public domain; "
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    ),
    Sample(
        "retina.jpg",
        "retina.jpg",
        "Human retina, by Mikael Häggström; CC0 1.0; "
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
    ),
    Sample(
        "rocket.jpg",
        "rocket.jpg",
        "Launch of DSCOVR on a Falcon 9, by SpaceX; public domain; "
        "https://www.flickr.com/photos/spacexphotos/16511594820",
    ),
)


def write_samples(folder: Path) -> list[Path]:
    """Write the sample photographs as JPEG files, and their licenses in `LICENSES.txt`.

    Nothing is written if a file of another content is in the way; files of the same content stay.

    Returns:
        The files written now, in order of name; empty if all were there.

    Raises:
        UsageError: if `folder` is a file.
        SohesError: if a file is in the way, scikit-image lacks a photograph, or the folder cannot be written.
    """
    contents = {sample.name: _jpeg(sample) for sample in SAMPLES}
    contents[LICENSES_NAME] = "".join(f"{sample.name}: {sample.license}\n" for sample in SAMPLES).encode()
    missing = [folder / name for name in sorted(contents) if not _exists(folder / name, contents[name])]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} cannot be a folder: {error.filename} is a file.", "Name another folder.") from error
    except OSError as error:
        message = f"The samples cannot be written to {folder}: {error.strerror}."
        raise SohesError(message, "Name a folder that you may write to.") from error
    for path in missing:
        write_atomically(path, [contents[path.name]])
    return missing


def _jpeg(sample: Sample) -> bytes:
    """Return the photograph as a JPEG file: scikit-image's own, or its pixels at quality 95."""
    source = files("skimage").joinpath("data", sample.source)
    try:
        content = source.read_bytes()
    except OSError as error:
        message = f"The installed scikit-image does not carry the photograph {sample.source} ({source})."
        hint = "Install scikit-image from PyPI: pip install --force-reinstall scikit-image"
        raise SohesError(message, hint) from error
    if sample.source.endswith(".jpg"):
        return content
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _exists(path: Path, content: bytes) -> bool:
    """True if the file exists with that content.

    Raises:
        SohesError: if something else is in the way.
    """
    if path.is_file() and path.read_bytes() == content:
        return True
    if path.exists() or path.is_symlink():
        message = f"{path} exists and is not the sample of that name."
        raise SohesError(message, "Name another folder, or move that file away.")
    return False
