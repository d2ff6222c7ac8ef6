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


def test_bare_commands_find_labels_and_model(
    sohes: Callable, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_photograph_of_another_size_fails_the_run_at_its_end(
    sohes: Callable, labels: Path, out: Path, tmp_path: Path
) -> None:
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
    assert_refused(
        train("--steps", 2, "--set", "run.checkpoint_every=1"),
        1,
        str(newest),
        "Delete it to continue from an older checkpoint",
    )


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
    assert_refused(
        sohes("train"), 2, "There are no labels labels (the default of --labels)", "sohes explore IMAGES --out labels"
    )


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory, labels: Path) -> Path:
    """A folder with labels, their images and a run of phase 2 where the commands look for them; not to be changed."""
    from train_cases import tiny_train_config

    from sohes_cli.training.session import train_run
    from sohes_cli.training.sources import Sources

    folder = tmp_path_factory.mktemp("instructed")
    for name in ("labels", "images"):
        shutil.copytree(labels.parent / name, folder / name)
    assert train_run(
        Sources(folder / "labels"), folder / "runs" / "instruct", tiny_train_config(3), device="cpu", workers=0
    )
    return folder


@pytest.fixture
def correct(sohes: Callable, instructed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `sohes train --phase correct` where there is a run of phase 2: `correct("--steps", 2)`."""
    folder = tmp_path / "here"
    shutil.copytree(instructed, folder)
    monkeypatch.chdir(folder)
    return lambda *flags: sohes("train", "--phase", "correct", "--device", "cpu", "--workers", 0, *flags)


def test_bare_correction_goes_on_from_the_run_of_phase_2(correct: Callable, sohes: Callable, tmp_path: Path) -> None:
    result = correct("--steps", 2)
    assert result.code == 0, result.err
    assert "6 photographs, 2 steps of 4." in result.err
    assert "teacher labels " in result.out
    assert "The model is runs/correct/model.safetensors." in result.out
    assert "Next: sohes segment IMAGE --tree\n" in result.out
    run = json.loads((tmp_path / "here" / "runs" / "correct" / "run.json").read_text())
    assert (run["start"], run["label_path"]) == ("../instruct", "../../labels")
    assert run["config"]["model"]["queries"] == 12
    assert run["config"]["branches"] == {"initial": [1.0, 0.0], "teacher": [2.0, 3.0]}
    segmented = sohes("segment", "images/a.png", "--device", "cpu", "--json")
    assert segmented.code == 0, segmented.err
    again = correct("--steps", 2)
    assert "All 2 steps of the run in runs/correct were done before." in again.out
    resumed = correct("--resume")
    assert (resumed.code, resumed.err) == (0, again.err)


def test_a_phase_of_fifty_steps_at_least_follows_a_short_one(correct: Callable, tmp_path: Path) -> None:
    result = correct(
        "--set", "branches.teacher=[0,0]", "--set", "branches.initial=[1,1]", "--set", "optimizer.batch_size=1"
    )
    assert result.code == 0, result.err
    assert "50 steps of 1." in result.err
    run = json.loads((tmp_path / "here" / "runs" / "correct" / "run.json").read_text())
    assert run["config"]["teacher"]["ema_decay"] == -1.0
    assert lines_of(tmp_path / "here" / "runs" / "correct")[-1]["ema_decay"] == pytest.approx(0.9995**100)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "small"], ["--preset belongs to --phase instruct", "--init"]),
        (["--weights", "random"], ["--weights belongs to --phase instruct", "--init"]),
        (["--init", "nowhere"], ["There is no model nowhere to correct", "sohes train --phase instruct"]),
        (["--init", "labels"], ["labels has no model.safetensors"]),
        (["--set", "teacher.threshold=high"], ["teacher.threshold must be one of area, fixed"]),
        (["--set", "teacher.hierarchy=tree"], ["teacher.hierarchy must be one of head, geometry"]),
        (["--set", "branches.initial=1"], ["branches.initial"]),
        (["--set", "views.week=crop"], ["views.week is not a setting", "views.weak"]),
        (["--set", "teacher.ema_decay=1"], ["teacher.ema_decay"]),
        (["--out", "runs/instruct"], ["does not belong to a run of sohes train --phase correct"]),
    ],
)
def test_wrong_usage_of_phase_3_is_named(correct: Callable, flags: list[str], words: list[str]) -> None:
    result = correct("--steps", 1, *flags)
    assert result.code == (1 if flags[0] == "--out" else 2)
    assert result.out == ""
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def test_phase_3_needs_a_model_of_ours(
    correct: Callable, sohes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"x": zeros(1)}, str(tmp_path / "other.safetensors"))
    assert_refused(
        correct("--init", tmp_path / "other.safetensors"), 1, "is not a model of sohes train", "run of phase 2"
    )
    monkeypatch.chdir(tmp_path)
    result = sohes("train", "--phase", "correct")
    assert_refused(
        result, 2, "There is no model runs/instruct (the default of --init) to correct.", "sohes train --phase instruct"
    )
