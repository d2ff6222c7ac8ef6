"""The documents: commands run or at least parse, links and files exist, numbers are those of the JSON files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from sohes_cli.cli import app
from sohes_cli.errors import ConfigError
from sohes_cli.explore.config import explore_config
from sohes_cli.structures import LabelRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sohes_cli_tests.conftest import Result

ROOT = Path(__file__).parents[1]
LARGEST_KB = {
    "README.md": 9,
    "sohes_cli/explore/README.md": 4,
    "sohes_cli/pretrain/README.md": 3,
    "sohes_cli/training/README.md": 6,
    "sohes_cli/inference/README.md": 3,
    "sohes_cli/evaluation/README.md": 3,
    "sohes_cli/convert/README.md": 7,
    "kernels/README.md": 3,
    "benchmarks/README.md": 5,
    "benchmarks/results/README.md": 14,
}
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in LARGEST_KB}
COMMANDS = typer.main.get_command(app).commands
EVERY_DOCUMENT = pytest.mark.parametrize("name", LARGEST_KB)
WIDTH = 120
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def block(name: str) -> str:
    """The commands between two markers of the main README, without fences and comments."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```\n<!-- /{name} -->", TEXTS["README.md"], re.DOTALL)
    assert found, f"README.md has no {name} block"
    return re.sub(r"\s+#.*", "", found.group(1))


def snippets(name: str, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return [code for found, code in _FENCE.findall(TEXTS[name]) if found == language]


def prose(name: str) -> str:
    """A document without its code blocks."""
    return _FENCE.sub("", TEXTS[name])


def shell_commands(name: str) -> Iterator[list[str]]:
    """The words of each command in the shell blocks of a document."""
    for line in "\n".join(snippets(name, "sh")).replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            if words := shlex.split(command, comments=True):
                yield words


def inline_codes(name: str) -> list[str]:
    """The code spans of a document."""
    return re.findall(r"`([^`]+)`", prose(name))


def sohes_words(words: list[str]) -> list[str] | None:
    """The arguments of `sohes ...`, `accelerate launch ... -m sohes_cli ...` and the like; None for another program."""
    if words[0] == "sohes":
        return words[1:]
    return words[words.index("sohes_cli") + 1 :] if "sohes_cli" in words else None


def check_assignments(words: list[str]) -> None:
    """Resolve the settings after `--set` as the command does."""
    from sohes_cli.pipeline.config import pipeline_config
    from sohes_cli.pretrain.config import pretrain_config
    from sohes_cli.training.correct_config import correct_config

    given = [value for option, value in pairwise(words) if option == "--set"]
    resolvers: dict[str, Callable[[list[str]], Any]] = {
        "explore": lambda given: explore_config(assignments=given),
        "pretrain": lambda given: pretrain_config(assignments=given),
        "train": lambda given: correct_config({}, assignments=given),
        "pipeline": lambda given: pipeline_config(assignments=given),
    }
    if given:
        resolvers[words[0]](given)


@EVERY_DOCUMENT
def test_sizes_and_widths(name: str) -> None:
    assert len(TEXTS[name].encode()) <= 1024 * LARGEST_KB[name]
    for line in prose(name).splitlines():
        assert len(line) <= WIDTH or line.startswith("|"), line


@EVERY_DOCUMENT
def test_links_and_pictures_exist(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(name)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            assert file.exists(), target
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@EVERY_DOCUMENT
def test_commands_parse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parameter in (p for command in COMMANDS.values() for p in command.params):
        monkeypatch.setattr(parameter, "callback", None)  # which look for folders and models that are not here
    for words in shell_commands(name):
        arguments = sohes_words(words)
        if arguments is not None:
            assert arguments[0] in COMMANDS, arguments
            COMMANDS[arguments[0]].make_context(arguments[0], list(arguments[1:]))
            check_assignments(arguments)
        elif words[:1] == ["python"]:
            check_script(words[1:])
        else:
            assert words[0] in {"python3", ".", "pip", "pytest"}, words


def check_script(words: list[str]) -> None:
    """Check that a script of the benchmarks exists and knows the options."""
    script = ROOT / words[0]
    shared = [ROOT / "benchmarks/sohes_benchmarks" / name for name in ("scripts.py", "stages/script.py")]
    known = "".join(path.read_text("utf-8") for path in (script, *shared))
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in known, words


@EVERY_DOCUMENT
def test_code_spans_name_what_exists(name: str) -> None:
    folders = ((ROOT / name).parent, ROOT, ROOT / "kernels")
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    for code in inline_codes(name):
        words = shlex.split(code) if "'" in code or " " in code else [code]
        arguments = sohes_words(words)
        if arguments:
            assert arguments[0] in COMMANDS, code
            own = {option for parameter in COMMANDS[arguments[0]].params for option in parameter.opts}
            assert {word for word in arguments if word.startswith("--")} <= own, code
        elif words[0] in ("python", "pip", "accelerate", "pytest"):
            assert words[:2] != ["python", "-m"] or find_spec(words[2]), code
        elif words[0].endswith(".py"):
            assert any((folder / words[0]).is_file() for folder in (*folders, ROOT / "benchmarks")), code
            if name == "benchmarks/README.md":
                check_script([f"benchmarks/{words[0]}", *words[1:]])
        elif words[0].startswith("--"):
            assert {word for word in words if word.startswith("--")} <= options, code
        for assignment in re.findall(r"(?:^|--set )([a-z_]+\.[a-z_]+=\S+)$", code):
            assert any(accepts(command, assignment) for command in ("explore", "pretrain", "train")), code


def accepts(command: str, assignment: str) -> bool:
    """True if a command knows the setting and allows the value."""
    try:
        check_assignments([command, "--set", assignment])
    except ConfigError:
        return False
    return True


@EVERY_DOCUMENT
def test_snippets_are_valid(name: str) -> None:
    for code in snippets(name, "python"):
        compile(code, name, "exec")
    for code in snippets(name, "json"):
        LabelRecord.from_json(json.loads(code))


def test_the_snippet_of_the_kernels_runs() -> None:
    values: dict[str, Any] = {}
    (code,) = snippets("kernels/README.md", "python")
    exec(code, values)  # it is ours
    assert [tuple(part.shape) for part in values["maps"]] == [(2, 60, 60)] * 3


def test_the_first_screen_says_what_it_is_and_what_it_is_not() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert lines.index("<!-- run-command -->") + 3 < 25
    first_screen = "\n".join(lines[:40])
    assert all(words in first_screen for words in ("![", "labels/", "Not run yet", "No trained model", "SAM"))
    assert TEXTS["README.md"].count("![") == 1


def test_the_run_command_is_the_beginning_of_the_tour() -> None:
    commands = [part.strip() for part in block("run-command").split("&&")]
    assert commands[:3] == ["python3 -m venv .venv", ". .venv/bin/activate", "pip install ."]
    assert commands[3:] == [line.strip() for line in block("tour").splitlines()[:2]]


def test_the_test_command_installs_the_test_extra_and_runs_pytest() -> None:
    commands = [part.strip() for part in block("test-command").split("&&")]
    assert commands == ["python3 -m venv .venv", ". .venv/bin/activate", "pip install -e '.[test]'", "pytest"]


def test_the_map_has_every_room() -> None:
    rooms = re.findall(r"^\| `(\w+)` \|", TEXTS["README.md"], re.MULTILINE)
    assert sorted(rooms) == sorted(path.parent.name for path in (ROOT / "sohes_cli").glob("*/__init__.py"))


def test_the_tables_of_results_are_those_of_the_json_files() -> None:
    command = [sys.executable, "benchmarks/results_tables.py", "--check"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    (table,) = re.findall(r"<!-- results -->\n(.*?)<!-- /results -->", TEXTS["README.md"], re.DOTALL)
    assert 3 <= len(re.findall(r"^\| (?!---| )", table, re.MULTILINE)) <= 8


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the tour of the main README has run, and the output of each line."""
    folder = tmp_path_factory.mktemp("tour")
    printed = {}
    for line in block("tour").splitlines():
        words = [sys.executable, "-m", "sohes_cli", *shlex.split(line)[1:]]
        environment = {**os.environ, "COLUMNS": "120"}
        finished = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=280, env=environment)
        assert finished.returncode == 0, finished.stderr
        printed[line.strip()] = finished.stdout
    return folder, printed


@pytest.mark.timeout(600)
def test_every_sample_gets_masks_with_a_hierarchy(toured: tuple[Path, dict[str, str]]) -> None:
    folder, _ = toured
    photographs = sorted(p.name for p in (folder / "photos").glob("*.jpg"))
    assert len(photographs) >= 5
    for name in photographs:
        annotations = json.loads((folder / "labels" / f"{name}.json").read_text())["annotations"]
        assert len(annotations) > 20, name
        assert any(a["parent"] is not None for a in annotations), name


def test_the_pictures_and_the_tree_are_there(toured: tuple[Path, dict[str, str]]) -> None:
    folder, printed = toured
    assert (folder / "report/index.html").is_file()
    for name in (p.name for p in (folder / "photos").glob("*.jpg")):
        assert (folder / "view" / f"{name}.overlay.jpg").stat().st_size > 1000
        assert (folder / "view" / f"{name}.forest.png").stat().st_size > 1000
    assert "%" in printed["sohes view labels/coffee.jpg.json"]


def test_pycocotools_loads_the_export(toured: tuple[Path, dict[str, str]]) -> None:
    from pycocotools.coco import COCO

    folder, _ = toured
    coco = COCO(str(folder / "labels.json"))
    stored = sum(len(json.loads(p.read_text())["annotations"]) for p in (folder / "labels").glob("*.jpg.json"))
    assert len(coco.anns) == stored
    assert coco.annToMask(next(iter(coco.anns.values()))).any()


@pytest.mark.timeout(600)
def test_a_model_is_trained_on_the_labels_and_segments_a_photograph(
    toured: tuple[Path, dict[str, str]], sohes: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toured[0])

    def run(line: str, *more: str) -> str:
        result = sohes(*shlex.split(line)[1:], *more)
        assert result.code == 0, result.err
        return result.out

    train, segment = (line.strip() for line in block("train").splitlines())
    short = ("--steps", "1", "--workers", "0")
    trained = run(train, *short, "--set", "optimizer.batch_size=2", "--set", "data.validation=0")
    assert "The model is runs/instruct/model.safetensors." in trained
    assert run(segment).startswith("coffee.jpg")
    values: dict[str, Any] = {}
    exec(snippets("README.md", "python")[0], values)
    n_masks = len(values["scores"])
    assert values["masks"].shape == (n_masks, 400, 600)
    assert len(values["parents"]) == n_masks
    exec(snippets("sohes_cli/inference/README.md", "python")[0], values)
    assert len(values["annotations"]) == len(values["boxes"]) == len(values["best"]) <= 10
    correct, segment = (line.strip() for line in block("correct").splitlines())
    assert "The model is runs/correct/model.safetensors." in run(correct, *short)
    assert run(segment).startswith("coffee.jpg")
