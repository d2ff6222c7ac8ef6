"""`sohes samples`: sample photographs for a first run."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["samples"]


def samples(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write to; it is made if missing.", show_default=False)
    ],
) -> None:
    """Write a handful of free sample photographs into a folder.

    Example: sohes samples photos
    """
    from rich.console import Console
    from rich.text import Text

    from sohes_cli.samples import write_samples

    console = Console(highlight=False, soft_wrap=True)
    written = write_samples(folder)
    for path in written:
        console.print(Text(f"Wrote {path}"))
    if not written:
        console.print(Text(f"All samples are in {folder} already."))
    console.print(Text(f"Next: sohes explore {shlex.quote(str(folder))} --out labels"))
