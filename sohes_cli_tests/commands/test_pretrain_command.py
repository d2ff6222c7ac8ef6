"""`sohes pretrain` as its users meet it: what it prints and writes, and what it says about input that is wrong."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from pretrain_cases import FLAGS
from train_cases import lines_of, steps_kept

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = (*FLAGS, "--workers", 0, "--device", "cpu")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def pretrain(sohes: Callable, photos: Path, out: Path) -> Callable[..., Any]:
    """Run a tiny `sohes pretrain` on the photographs: `pretrain("--steps", 3)`."""
    return lambda *flags: sohes("pretrain", photos, "--out", out, *TINY, *flags)


def assert_refused(result: Any, code: int, *words: str) -> None:
    """One message on stderr, nothing on stdout, no traceback."""
    assert result.code == code, result
    assert result.out == ""
    assert "Traceback" not in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("Error: ")]) == 1
    for word in words:
        assert word in result.err


def test_a_run_says_what_it_does_and_leaves_a_backbone(pretrain: Callable, out: Path) -> None:
    result = pretrain("--steps", 3)
    assert result.code == 0
    assert "0.2 million parameters, patch 8; 1 process on cpu, fp32." in result.err
    assert "8 photographs, 3 steps of 4." in result.err
    assert "Step 3 of 3: loss " in result.out
    assert f"The backbone is {out / 'backbone.safetensors'}." in result.out
    assert f"Next: sohes explore IMAGES --backbone {out}" in result.out
    assert "\r" not in result.err  # no progress bar, for this is no terminal
    assert {path.name for path in out.iterdir()} == {
        "run.json",
        "checkpoints",
        "backbone.safetensors",
        "metrics.jsonl",
        "tensorboard",
    }
    wanted = {
        "loss",
        "loss_image",
        "loss_masked",
        "loss_match",
        "gradient_norm",
        "learning_rate",
        "feature_rank",
        "match_agreement",
    }
    lines = lines_of(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(wanted <= line.keys() for line in lines)


def test_a_finished_run_says_so_and_does_not_train(pretrain: Callable, out: Path) -> None:
    assert pretrain("--steps", 2).code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result = pretrain("--steps", 2, "--set", "run.log_every=5")
    assert result.code == 0
    assert "2 steps of 4, 2 of them done before." in result.err
    assert f"All 2 steps of the run in {out} were done before." in result.out
    assert f"The backbone is {out / 'backbone.safetensors'}." in result.out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_json_is_the_only_thing_on_stdout(pretrain: Callable, out: Path) -> None:
    result = pretrain("--steps", 2, "--json")
    summary = json.loads(result.out)
    assert (result.code, result.out.count("\n")) == (0, 1)
    numbers, seconds = summary.pop("numbers"), summary.pop("seconds")
    assert summary == {
        "run": str(out),
        "photographs": 8,
        "steps": 2,
        "done_before": 0,
        "done": 2,
        "saved": 2,
        "interrupted": False,
        "failed": [],
    }
    assert numbers["loss"] == pytest.approx(lines_of(out)[-1]["loss"], abs=1e-6)
    assert numbers["images_per_second"] == pytest.approx(8 / seconds, rel=0.01)
    again = json.loads(pretrain("--steps", 2, "--json").out)
    assert (again["done_before"], again["done"], again["numbers"]) == (2, 2, {})


def test_changed_settings_and_photographs_are_refused_and_overwrite_begins_anew(
    sohes: Callable, pretrain: Callable, photos: Path, out: Path
) -> None:
    assert pretrain("--steps", 2).code == 0
    before = (out / "backbone.safetensors").read_bytes()
    assert_refused(
        pretrain("--steps", 2, "--learning-rate", 0.01),
        2,
        "optimizer.learning_rate (0.002 there, 0.01 now)",
        "--overwrite",
    )
    other = sohes("pretrain", photos / "sub", "--out", out, *TINY, "--steps", 2)
    assert_refused(other, 2, "other photographs (8 there, 3 now)")
    assert (out / "backbone.safetensors").read_bytes() == before
    (out / "notes.txt").write_text("mine")
    assert pretrain("--steps", 3, "--learning-rate", 0.01, "--overwrite").code == 0
    assert steps_kept(out) == [3]
    assert [line["step"] for line in lines_of(out)] == [1, 2, 3]
    assert (out / "notes.txt").read_text() == "mine"


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(pretrain: Callable, out: Path) -> None:
    run = ("--steps", 4, "--set", "run.checkpoint_every=2")
    assert pretrain(*run).code == 0
    whole = (out / "backbone.safetensors").read_bytes()
    newest = out / "checkpoints" / "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert_refused(pretrain(*run), 1, str(newest), "Delete it to continue from an older checkpoint")
    newest.unlink()
    result = pretrain(*run)
    assert result.code == 0
    assert "2 of them done before" in result.err
    assert (out / "backbone.safetensors").read_bytes() == whole
    assert [line["step"] for line in lines_of(out)] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_shape_is_named(
    sohes: Callable, pretrain: Callable, photos: Path, out: Path, tmp_path: Path
) -> None:
    assert pretrain("--steps", 2).code == 0
    other = tmp_path / "other"
    assert sohes("pretrain", photos, "--out", other, *TINY, "--steps", 2, "--set", "model.depth=1").code == 0
    name = "checkpoints/step-00000002.safetensors"
    shutil.copy(other / name, out / name)
    assert_refused(pretrain("--steps", 2), 1, str(out / name), "does not fit this model", "blocks.1.")


def test_a_damaged_photograph_fails_the_run_at_its_end(
    sohes: Callable, photos: Path, out: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "d-spoon.jpg").write_bytes((folder / "d-spoon.jpg").read_bytes()[:300])
    (folder / "line\nend.png").write_text("two lines")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    result = sohes("pretrain", folder, "--out", out, *TINY, "--epochs", 2, "--json")
    assert result.code == 1
    failed = [line for line in result.err.splitlines() if line.startswith("Failed: ")]
    names = ("d-spoon.jpg", r"line\nend.png", "gone.png")
    assert len(failed) == 3
    assert all(sum(name in line for line in failed) == 1 for name in names)
    assert "Error: 3 of 10 photographs could not be read: " in result.err
    assert "The backbone was trained on the others." in result.err
    assert "Traceback" not in result.err
    summary = json.loads(result.out)
    assert len(summary["failed"]) == 3
    assert summary["done"] == summary["steps"] == summary["saved"]
    assert sohes("pretrain", folder, "--out", out, *TINY, "--epochs", 2).code == 1  # done, and still not all of them


def test_fewer_photographs_than_a_batch_holds(sohes: Callable, photos: Path, out: Path) -> None:
    result = sohes("pretrain", photos / "sub", "--out", out, *TINY, "--batch-size", 8, "--epochs", 6)
    assert result.code == 0
    assert "3 photographs, 2 steps of 8." in result.err
    assert len(lines_of(out)) == 2


def test_a_run_starts_from_the_backbone_of_another(
    sohes: Callable, pretrain: Callable, photos: Path, out: Path, tmp_path: Path
) -> None:
    assert pretrain("--steps", 2).code == 0
    backbone = out / "backbone.safetensors"
    second = ("pretrain", photos, "--out", tmp_path / "second", *TINY, "--steps", 1)
    assert sohes(*second, "--weights", backbone).code == 0
    assert_refused(
        sohes("pretrain", photos, "--out", tmp_path / "third", *TINY, "--weights", backbone, "--set", "model.depth=1"),
        1,
        str(backbone),
        "blocks.1.",
    )
    assert not (tmp_path / "third").exists()


def test_the_preset_for_a_cpu_takes_steps(sohes: Callable, photos: Path, out: Path) -> None:
    flags = (
        "--preset",
        "cpu",
        "--batch-size",
        2,
        "--steps",
        2,
        "--set",
        "run.log_every=1",
        "--workers",
        0,
        "--device",
        "cpu",
    )
    result = sohes("pretrain", photos, "--out", out, *flags)
    assert result.code == 0, result.err
    settings = json.loads((out / "run.json").read_text())["config"]
    assert (settings["model"]["embed_dim"], settings["views"]["global_size"], settings["loss"]["image_weight"]) == (
        256,
        112,
        0.0,
    )
    lines = lines_of(out)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss"] == line["loss_match"] > 0 for line in lines)
    assert steps_kept(out) == [2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "-1"], ["optimizer.steps", "-1"]),
        (["--epochs", "0"], ["optimizer.epochs", "at least 1"]),
        (["--batch-size", "1"], ["optimizer.batch_size", "at least 2"]),
        (["--set", "views.global_size=60"], ["views.global_size must be a multiple of the patch size 8, not 60"]),
        (["--set", "views.local_size=36"], ["views.local_size must be a multiple of the patch size 8, not 36"]),
        (["--patch-size", "24"], ["views.global_size must be a multiple of the patch size 24, not 64"]),
        (
            ["--model", "vit_tiny_patch16_22"],
            ["There is no timm ViT 'vit_tiny_patch16_22'", "Did you mean 'vit_tiny_patch16_224'?"],
        ),
        (["--model", "resnet50"], ["There is no timm ViT 'resnet50'"]),
        (["--device", "cuda:7"], ["--device must be auto or cpu, not 'cuda:7'", "CUDA_VISIBLE_DEVICES"]),
        (["--workers", "-2"], ["--workers"]),
        (["--preset", "gpu"], ["--preset must be one of default, cpu"]),
        (["--set", "optimizer.precision=fp16"], ["optimizer.precision must be auto, fp32 or bf16"]),
        (["--set", "loss.match=1"], ["loss.match is not a setting", "match_weight"]),
        (["--weights", "nowhere.safetensors"], ["There is no weights file nowhere.safetensors"]),
    ],
)
def test_what_cannot_be_right_is_wrong_usage(pretrain: Callable, out: Path, flags: list[str], words: list[str]) -> None:
    result = pretrain(*flags)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    assert not out.exists()


def test_a_batch_that_processes_cannot_share_is_wrong_usage(
    pretrain: Callable, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 3)
    assert_refused(pretrain("--steps", 1), 2, "--batch-size 4 cannot be shared by 3 processes")
    assert not out.exists()


@pytest.mark.parametrize(
    ("images", "code", "words"),
    [
        ("missing", 2, ["missing"]),
        ("empty", 1, ["empty is empty", "Put photographs into it"]),
        ("text.txt", 2, ["neither a folder nor a .tar file"]),
    ],
)
def test_photographs_that_are_not_there(
    sohes: Callable, out: Path, tmp_path: Path, images: str, code: int, words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").touch()
    assert_refused(sohes("pretrain", tmp_path / images, "--out", out, *TINY), code, *words)
    assert not out.exists()


def test_a_broken_launch_is_wrong_usage(pretrain: Callable, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(pretrain("--steps", 1), 2, "RANK=2, WORLD_SIZE=2")
    assert not out.exists()
