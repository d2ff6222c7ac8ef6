"""The README's own commands run and leave what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The commands between two markers, without fences and comments."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```\n<!-- /{name} -->", README, re.DOTALL)
    assert found, f"README.md has no {name} block"
    return re.sub(r"\s+#.*", "", found.group(1))


def run(command: str, folder: Path) -> str:
    """Run one `sohes ...` line in this interpreter's environment; it must succeed."""
    words = shlex.split(command)
    assert words[0] == "sohes", command
    finished = subprocess.run(
        [sys.executable, "-m", "sohes_cli", *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the tour of the README has run, and what each line printed."""
    folder = tmp_path_factory.mktemp("tour")
    return folder, {line: run(line, folder) for line in block("tour").splitlines() if line.strip()}


def test_the_run_command_is_the_beginning_of_the_tour() -> None:
    commands = [part.strip() for part in block("run-command").split("&&")]
    assert commands[:3] == ["python3 -m venv .venv", ". .venv/bin/activate", "pip install ."]
    assert commands[3:] == [line.strip() for line in block("tour").splitlines()[:2]]


def test_the_test_command_installs_the_test_extra_and_runs_pytest() -> None:
    commands = [part.strip() for part in block("test-command").split("&&")]
    assert commands == ["python3 -m venv .venv", ". .venv/bin/activate", "pip install -e '.[test]'", "pytest"]


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
    for name in (p.name for p in (folder / "photos").glob("*.jpg")):
        assert (folder / "view" / f"{name}.overlay.jpg").stat().st_size > 1000
        assert (folder / "view" / f"{name}.forest.png").stat().st_size > 1000
    assert "%" in next(text for line, text in printed.items() if line.startswith("sohes view labels/coffee"))


def test_pycocotools_loads_the_export(toured: tuple[Path, dict[str, str]]) -> None:
    from pycocotools.coco import COCO

    folder, _ = toured
    coco = COCO(str(folder / "labels.json"))
    stored = sum(len(json.loads(p.read_text())["annotations"]) for p in (folder / "labels").glob("*.jpg.json"))
    assert len(coco.anns) == stored
    assert coco.annToMask(next(iter(coco.anns.values()))).any()


@pytest.mark.timeout(600)
def test_a_model_is_trained_on_the_labels_and_segments_a_photograph(toured: tuple[Path, dict[str, str]]) -> None:
    folder, _ = toured
    train, segment = (line.strip() for line in block("train").splitlines())
    assert "The model is runs/instruct/model.safetensors." in run(
        f"{train} --steps 2 --set optimizer.batch_size=2", folder
    )
    printed = run(segment, folder)
    assert printed.startswith("coffee.jpg")
    example = re.search(r"```python\n(from sohes_cli import Segmenter\n.*?)```", README, re.DOTALL)
    assert example
    script = example.group(1) + "print(prediction.masks.shape, len(prediction.parents))"
    finished = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert re.fullmatch(r"\((\d+), 400, 600\) \1\n", finished.stdout)
    correct, segment = (line.strip() for line in block("correct").splitlines())
    assert "The model is runs/correct/model.safetensors." in run(f"{correct} --steps 1", folder)
    assert run(segment, folder).startswith("coffee.jpg")
