"""Options that mean the same in several commands, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Assignments", "ConfigFile", "OverwriteRun", "Readers", "TrainingDevice"]

ConfigFile = Annotated[Path | None, typer.Option(help="TOML file of settings.", show_default=False)]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="GROUP.NAME=VALUE", help="One setting; may be repeated.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]

Readers = Annotated[int, typer.Option(min=-1, help="Processes that read photographs; -1 chooses, 0 uses none.")]
TrainingDevice = Annotated[str, typer.Option(help="auto or cpu.")]
OverwriteRun = Annotated[bool, typer.Option("--overwrite", help="Remove the run in --out first.")]
