"""`sohes samples`: sample photographs for a first run."""

import shlex
from pathlib import Path
from typing import Annotated

from sohes_cli.commands.options import argument

__all__ = ["samples"]


def samples(folder: Annotated[Path, argument("DIR", "Folder to write to, made if missing.")]) -> None:
    """Write free sample photographs into a folder.

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
