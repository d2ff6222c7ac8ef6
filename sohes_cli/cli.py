"""The `sohes` command: one Typer app, and the mapping of errors to exit codes.

Exit code 0 is success, 1 a failed run, 2 wrong usage and 130 an interruption (Ctrl-C or SIGTERM). Neither this module
nor the command modules import anything heavy, so that `sohes --help` answers at once.
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
    help="Segment every entity of a photograph, its parts and their parts, learned from raw images (SOHES, ICLR 2024).",
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
        bool, typer.Option(_TRACEBACK, help="Show the traceback of an error, for a bug report.")
    ] = False,
) -> None:
    del version, show_traceback  # handled by the callback, and by `main`


class _Interruption(BaseException):
    """Ctrl-C or SIGTERM; a BaseException that no error handler swallows and Typer does not turn into its exit code."""


def main() -> None:
    """Run the command line; report an error on stderr and by the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app(prog_name="sohes")
    except _Interruption:
        typer.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED)
    except SohesError as error:
        _fail(error, error.message, error.hint, error.exit_code)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        hint = f"Please report it with the output of `sohes {_TRACEBACK} ...`."
        _fail(error, f"Unexpected error ({reason}).", hint, 1)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Interruption


def _fail(error: Exception, message: str, hint: str, exit_code: int) -> NoReturn:
    if _TRACEBACK in sys.argv[1:]:
        traceback.print_exception(error)
    typer.echo(f"Error: {message}", err=True)
    if hint:
        typer.echo(f"  {hint}", err=True)
    sys.exit(exit_code)
