"""The `sohes` command: one Typer app, a thin file for each command, and one place where errors become exit codes.

Exit code 0 is success, 1 a run that failed, 2 wrong usage and 130 an interruption (Ctrl-C or SIGTERM). Nothing heavy is
imported here or in the command modules, so that `sohes --help` answers at once.
"""

from __future__ import annotations

import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from sohes_cli.commands.bench import bench
from sohes_cli.commands.convert import convert
from sohes_cli.commands.evaluate import evaluate
from sohes_cli.commands.explore import explore
from sohes_cli.commands.export import export
from sohes_cli.commands.pipeline import pipeline
from sohes_cli.commands.pretrain import pretrain
from sohes_cli.commands.samples import samples
from sohes_cli.commands.segment import segment
from sohes_cli.commands.train import train
from sohes_cli.commands.view import view
from sohes_cli.errors import SohesError
from sohes_cli.runs.interruption import INTERRUPTED
from sohes_cli.version import __version__

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["app", "main"]

_TRACEBACK = "--traceback"

app = typer.Typer(
    name="sohes",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing Rich would double the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find every entity of a photograph, its parts and their parts, learned from raw images alone (SOHES, ICLR 2024).",
)
for command in (samples, pretrain, explore, train, pipeline, segment, view, evaluate, convert, export, bench):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sohes {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option(_TRACEBACK, help="Show where an error arose, for a bug report.")
    ] = False,
) -> None:
    del version, show_traceback  # the first is done by its callback, the second is for `main`, which catches the error


class _Interruption(BaseException):
    """Ctrl-C or SIGTERM; no Exception, so that no handler of errors swallows it, and unknown to Typer, which would take its exit code."""


def main() -> None:
    """Run the command line; an error becomes a message on stderr and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except _Interruption:
        typer.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except SohesError as error:
        _fail(error, error.message, error.hint, error.exit_code)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _fail(
            error,
            f"sohes came upon something unforeseen ({reason}).",
            f"Please report it with what `sohes {_TRACEBACK} ...` prints.",
            1,
        )


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Interruption


def _fail(error: Exception, message: str, hint: str, exit_code: int) -> NoReturn:
    if _TRACEBACK in sys.argv[1:]:
        traceback.print_exception(error)
    typer.echo(f"Error: {message}", err=True)
    if hint:
        typer.echo(f"  {hint}", err=True)
    sys.exit(exit_code)
