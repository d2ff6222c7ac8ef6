"""`sohes train` as its users meet it: what it prints and writes, and what it says about input that is wrong."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from train_cases import FLAGS, lines_of, steps_kept, write_scene

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = (*FLAGS, "--workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label folder beside the images that it names; not to be changed."""
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def train(sohes: Callable, labels: Path, out: Path) -> Callable[..., Any]:
    """Run a tiny `sohes train` on the labels: `train("--steps", 3)`."""
    return lambda *flags: sohes("train", "--phase", "instruct", "--labels", labels, "--out", out, *TINY, *flags)


def assert_refused(result: Any, code: int, *words: str) -> None:
    """One message on stderr, nothing on stdout, no traceback."""
    assert result.code == code, result
    assert result.out == ""
    assert "Traceback" not in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("Error: ")]) == 1
    for word in words:
        assert word in result.err


def test_a_run_says_what_it_does_and_leaves_a_model(train: Callable, out: Path) -> None:
    result = train("--steps", 2)
    assert result.code == 0, result.err
    assert "12 queries, 0.1 million parameters; 1 process on cpu, fp32." in result.err
    assert "6 photographs, 2 steps of 4." in result.err
    assert "Step 2 of 2: loss " in result.out
    assert f"The model is {out / 'model.safetensors'}." in result.out
    assert f"Next: sohes segment IMAGE --tree --checkpoint {out}" in result.out
    assert "\r" not in result.err  # no progress bar, for this is no terminal
    assert [line["step"] for line in lines_of(out)] == [1, 2]
    assert (out / "pictures" / "step-00000002.jpg").stat().st_size > 1000


def test_bare_commands_find_labels_and_model(sohes: Callable, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(labels.parent / "labels", tmp_path / "labels")
    shutil.copytree(labels.parent / "images", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    result = sohes("train", *TINY, "--steps", 1)
    assert result.code == 0, result.err
    assert "Next: sohes segment IMAGE --tree\n" in result.out
    assert steps_kept(tmp_path / "runs" / "instruct") == [1]
    result = sohes("segment", "images/a.png", "--tree", "--device", "cpu")
    assert result.code == 0, result.err
    assert "a.png" in result.out


def test_json_is_the_only_thing_on_stdout(train: Callable, out: Path) -> None:
    result = train("--steps", 1, "--json")
    summary = json.loads(result.out)
    assert (result.code, result.out.count("\n")) == (0, 1)
    assert (summary["run"], summary["photographs"], summary["done"], summary["saved"]) == (str(out), 6, 1, 1)
    assert summary["numbers"]["loss"] == pytest.approx(lines_of(out)[-1]["loss"], abs=1e-5)


def test_resume_needs_no_settings(sohes: Callable, train: Callable, out: Path) -> None:
    assert train("--steps", 2).code == 0
    result = sohes("train", "--out", out, "--resume", "--device", "cpu", "--workers", 0)
    assert result.code == 0, result.err
    assert f"All 2 steps of the run in {out} were done before." in result.out
    refused = sohes("train", "--out", out, "--resume", "--steps", 3, "--device", "cpu", "--workers", 0)
    assert_refused(refused, 2, "optimizer.steps (2 there, 3 now)")


def test_labels_of_other_images_are_refused(sohes: Callable, labels: Path, out: Path, photos: Path) -> None:
    result = sohes("train", "--labels", labels, "--images", photos, "--out", out, *TINY, "--steps", 1)
    assert_refused(result, 1, "holds none of the photographs", "a.png", "--images")
    assert not out.exists()


def test_a_photograph_of_another_size_fails_the_run_at_its_end(sohes: Callable, labels: Path, out: Path, tmp_path: Path) -> None:
    from PIL import Image

    shutil.copytree(labels.parent / "labels", tmp_path / "labels")
    shutil.copytree(labels.parent / "images", tmp_path / "images")
    Image.new("RGB", (50, 50)).save(tmp_path / "images" / "b.png")
    result = sohes("train", "--labels", tmp_path / "labels", "--out", out, *TINY, "--steps", 3)
    assert result.code == 1
    assert "Failed: b.png has 50 x 50 pixels (height x width), but its labels are for 96 x 64." in result.err
    assert "The model was trained on the others." in result.err
    assert steps_kept(out) == [3]


def test_a_damaged_checkpoint_is_named(train: Callable, out: Path) -> None:
    assert train("--steps", 2, "--set", "run.checkpoint_every=1").code == 0
    newest = out / "checkpoints" / "step-00000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert_refused(train("--steps", 2, "--set", "run.checkpoint_every=1"), 1, str(newest), "Delete it to continue from an older checkpoint")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], ["optimizer.steps", "at least 1"]),
        (["--phase", "instrukt"], ["--phase", "instruct"]),
        (["--preset", "huge"], ["--preset must be one of tiny, small, base"]),
        (["--image-size", "100"], ["data.image_size must be a multiple of 32"]),
        (["--labels", "nowhere"], ["nowhere"]),
        (["--init", "nowhere"], ["nowhere"]),
        (["--set", "model.interactions=3"], ["model.interactions must divide the 2 blocks"]),
        (["--set", "model.adapter_heads=3"], ["model.adapter_heads must divide the 16 channels"]),
        (["--set", "data.validation=6"], ["data.validation", "6 of 6"]),
        (["--weights", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["--device", "cuda:7"], ["--device must be auto or cpu, not 'cuda:7'"]),
        (["--set", "optimizer.schedule=step"], ["optimizer.schedule must be one of poly, cosine, constant"]),
    ],
)
def test_what_cannot_be_right_is_wrong_usage(train: Callable, out: Path, flags: list[str], words: list[str]) -> None:
    result = train(*flags)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    assert not (out / "checkpoints").exists()


def test_no_labels_says_how_to_make_them(sohes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(sohes("train"), 2, "There are no labels labels (the default of --labels)", "sohes explore IMAGES --out labels")
