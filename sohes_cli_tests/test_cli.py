"""The command as a whole: how light it starts, what its help looks like, and which exit code each kind of end has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sohes_cli import cli
from sohes_cli.errors import SohesError, UsageError
from sohes_cli.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMANDS = [
    "samples",
    "pretrain",
    "explore",
    "train",
    "pipeline",
    "segment",
    "view",
    "evaluate",
    "convert",
    "export",
    "bench",
]
HEAVY = [
    "torch",
    "timm",
    "numpy",
    "scipy",
    "numba",
    "cv2",
    "skimage",
    "PIL",
    "pycocotools",
    "rich",
    "tqdm",
    "multiprocessing",
]


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, sohes_cli.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["explore", "--help"], ["--version"]])
def test_help_loads_nothing_heavy_either(arguments: list[str]) -> None:
    code = (
        "import sys, sohes_cli.cli\n"
        f"sys.argv = ['sohes', *{arguments}]\n"
        "try:\n    sohes_cli.cli.main()\n"
        f"finally:\n    print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip().endswith("loaded: []")


WRONG_USAGE = [  # command, words of its error
    ("explore nowhere", "The image folder nowhere does not exist."),
    ("explore photos --out file", "--out file is a file."),
    ("explore photos --device gpu", "The device 'gpu' is not available."),
    ("explore photos --preset papr", "--preset must be one of default, paper, not 'papr'. Did you mean 'paper'?"),
    ("explore photos --set pooling.max_mask=3", "pooling.max_mask is not a setting. Did you mean 'max_masks'?"),
    ("explore photos --set pooling.max_masks=0", "pooling.max_masks must be from 1 to 10000, not 0."),
    ("explore photos --config nowhere.toml", "--config nowhere.toml cannot be read"),
    ("explore photos --backbone nothing", "There is no backbone 'nothing'."),
    ("explore photos --backbone vit_bas_patch8_224.dino", "Did you mean vit_base_patch8_224.dino"),
    ("explore photos --backbone colour-texture", "is unknown. Did you mean 'color-texture'?"),
    ("explore photos --backbone runs/nowhere", "--backbone runs/nowhere: there is no such file."),
    ("explore photos --weights file", "--weights belongs to a ViT"),
    ("pretrain nowhere", "The image folder nowhere does not exist."),
    ("pretrain photos --out file", "--out file is a file."),
    ("pretrain photos --device cuda", "--device must be auto or cpu, not 'cuda'."),
    ("pretrain photos --set loss.match=1", "loss.match is not a setting."),
    ("train", "There are no labels labels (the default of --labels)."),
    ("train --labels nowhere", "There are no labels nowhere."),
    ("train --phase correct", "There is no model runs/instruct (the default of --init) to correct."),
    ("train --phase correct --preset tiny", "--preset belongs to --phase instruct"),
    ("train --labels photos --preset big", "--preset must be one of tiny, small, base, not 'big'."),
    ("train --labels photos --device x", "--device must be auto or cpu, not 'x'."),
    ("train --labels photos --out file", "--out file is a file."),
    ("segment nowhere", "There is no image or folder nowhere."),
    ("segment photos --checkpoint bundled", "--checkpoint bundled: this version of sohes contains no model."),
    ("segment photos --checkpoint nowhere", "There is no model nowhere."),
    ("segment photos --checkpoint photos", "photos has no model.safetensors."),
    ("segment photos --checkpoint file --views 9", "segment.views must be a whole number from 1 to 8, not 9."),
    ("segment photos --out file", "--out file is a file."),
    ("segment photos --device gpu", "The device 'gpu' is not available."),
    ("pipeline nowhere", "The image folder nowhere does not exist."),
    ("pipeline photos --out file", "--out file is a file."),
    ("pipeline photos --set instruct.optimizer.step=1", "Stage instruct: optimizer.step is not a setting."),
    ("pipeline photos --set explore.features.backbone=nothing", "Stage explore: There is no backbone 'nothing'."),
    ("pipeline photos --device gpu", "--device must be auto or cpu, not 'gpu'."),
]


@pytest.mark.parametrize(("command", "message"), WRONG_USAGE)
def test_wrong_usage_is_refused_before_anything_heavy_is_imported(tmp_path: Path, command: str, message: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").touch()
    code = (
        "import sys, sohes_cli.cli, sohes_cli.vit.bundled as b\n"
        "from dataclasses import replace\n"
        "b.MODEL = replace(b.MODEL, sha256='')\n"
        f"sys.argv = ['sohes', *{command.split()}]\n"
        "try:\n    sohes_cli.cli.main()\n"
        f"finally:\n    print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 2, finished.stderr
    assert message in finished.stderr
    assert finished.stderr.startswith("Error: ")
    assert finished.stdout == "loaded: []\n"


def test_the_version_is_printed(sohes: Callable) -> None:
    result = sohes("--version")
    assert (result.code, result.out) == (0, f"sohes {__version__}\n")


def test_the_overview_names_every_command_in_a_whole_sentence(sohes: Callable) -> None:
    lines = [line.split(maxsplit=1) for line in sohes("--help").out.split("Commands:\n")[1].splitlines()]
    assert [name for name, _ in lines] == COMMANDS
    assert all(sentence.endswith(".") and not sentence.endswith("...") for _, sentence in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_sentence_and_an_example_on_a_line_of_its_own(sohes: Callable, command: str) -> None:
    result = sohes(command, "--help")
    lines = [line.strip() for line in result.out.splitlines()]
    assert result.code == 0
    assert lines[0].startswith(f"Usage: sohes {command} ")
    example = next(line for line in lines if line.startswith("Example: "))
    assert example.startswith(f"Example: sohes {command} ")
    around = lines.index(example)
    assert lines[around - 1] == lines[around + 1] == ""
    assert lines[around - 2].endswith(".")


def test_without_a_command_the_help_is_shown(sohes: Callable) -> None:
    assert "Commands:" in "".join((result := sohes()).out + result.err)


@pytest.mark.parametrize("arguments", [["explode"], ["--verbose"], ["explore"], ["explore", "x", "--worker", "2"]])
def test_unknown_words_are_wrong_usage(sohes: Callable, arguments: list[str]) -> None:
    result = sohes(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Error: " in result.err
    assert "Traceback" not in result.err


def fail_with(error: BaseException) -> Callable[..., None]:
    def run(**_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize("kind", [SohesError, UsageError])
def test_an_error_of_ours_is_two_lines_and_its_exit_code(
    sohes: Callable, monkeypatch: pytest.MonkeyPatch, kind: type[SohesError]
) -> None:
    monkeypatch.setattr(cli, "app", fail_with(kind("x.jpg is wrong.", "Mend it.")))
    result = sohes()
    assert (result.code, result.out, result.err) == (kind.exit_code, "", "Error: x.jpg is wrong.\n  Mend it.\n")


def test_an_unexpected_error_is_a_message_and_a_traceback_only_when_asked_for(
    sohes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "app", fail_with(KeyError("secret")))
    result = sohes("view", "x")
    assert result.code == 1
    assert result.err.startswith("Error: Unexpected error (KeyError: 'secret').\n  Please report it")
    assert "Traceback" not in result.err
    assert "Traceback" in sohes("--traceback", "view", "x").err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_one_word_and_exit_code_130(
    sohes: Callable, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def run(**_: object) -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception as error:  # what a command might do to go on after errors
            raise AssertionError("the interruption was taken for an error") from error

    monkeypatch.setattr(cli, "app", run)
    result = sohes()
    assert (result.code, result.out, result.err) == (130, "", "Interrupted.\n")


def test_an_interruption_inside_a_typer_command_has_the_same_exit_code(
    sohes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sohes_cli.samples.write_samples", lambda _: os.kill(os.getpid(), signal.SIGINT))
    result = sohes("samples", "x")
    assert (result.code, result.err) == (130, "Interrupted.\n")
