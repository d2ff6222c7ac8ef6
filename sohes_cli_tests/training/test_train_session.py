"""Whole runs of `sohes train`, also resumed and in two processes: equal weights, and named failures."""

from __future__ import annotations

import math
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from train_cases import FLAGS, after_steps, assert_same_runs, lines_of, steps_kept, tensors_of, tiny_train_config

from sohes_cli.errors import SohesError, UsageError, WeightsError
from sohes_cli.model.files import load_model
from sohes_cli.training import learner
from sohes_cli.training.session import resumed_run, train_run
from sohes_cli.training.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sohes_cli.training.config import TrainConfig

STEPS = 5
CONFIG = tiny_train_config(STEPS, "model.drop_path=0.2")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(labels: Path) -> Path:
    """Folder of an uninterrupted run."""
    out = labels.parent / "whole"
    assert run_training(labels, out)
    return out


def run_training(
    labels: Path, out: Path, config: TrainConfig = CONFIG, sources: Sources | None = None, **options: Any
) -> bool:
    return train_run(sources or Sources(labels), out, config, device="cpu", **{"workers": 0} | options)


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 2, 3, 4)], ids=str)
def test_a_run_that_was_stopped_is_the_run_that_was_not(
    labels: Path, out: Path, whole: Path, stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    after_steps(monkeypatch, dict.fromkeys(stops, lambda: signal.raise_signal(signal.SIGINT)))
    for done in stops:
        assert not run_training(labels, out)
        assert steps_kept(out)[-1] == done
    assert run_training(labels, out)
    assert_same_runs(out, whole, STEPS)


def test_parts_of_a_step_and_workers_change_no_loss(labels: Path, out: Path, whole: Path) -> None:
    config = tiny_train_config(1, "model.drop_path=0.2", "optimizer.accumulate=2", "optimizer.schedule=constant")
    assert run_training(labels, out, config, workers=1)
    parts, at_once = lines_of(out)[0], lines_of(whole)[0]
    # batch norms see half of the batch, so features differ a little
    assert parts["loss"] == pytest.approx(at_once["loss"], rel=0.05)
    assert parts["learning_rate"] == at_once["learning_rate"]


def test_two_processes_take_the_steps_of_one(launch: Callable, labels: Path, out: Path, tmp_path: Path) -> None:
    flags = ("--labels", labels, *FLAGS, "--steps", 3, "--device", "cpu", "--workers", 0)
    result = launch("train", *flags, "--out", out)
    assert result.code == 0, result.err
    assert "2 processes on cpu" in result.err
    assert run_training(labels, tmp_path / "one", tiny_train_config(3))
    for mine, other in zip(lines_of(out), lines_of(tmp_path / "one"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)  # the third follows from two updates


def test_what_is_written_says_what_made_it(labels: Path, whole: Path) -> None:
    model, description = load_model(whole)
    assert description["step"] == STEPS
    assert description["image_size"] == CONFIG.data.image_size
    assert description["config"]["model"]["queries"] == model.config.queries == CONFIG.model.queries
    assert len(description["labels_sha256"]) == 64
    assert "torch" in description["versions"]
    names = "run.json checkpoints metrics.jsonl tensorboard model.safetensors best.safetensors pictures"
    assert {path.name for path in whole.iterdir()} == set(names.split())
    numbers = lines_of(whole)[-1]
    wanted = {
        "loss",
        "loss_class",
        "loss_mask",
        "loss_dice",
        "loss_ancestor",
        "ancestor_accuracy",
        "gradient_norm",
        "learning_rate",
    }
    assert wanted <= numbers.keys()
    assert labels.is_dir()


def test_the_newest_three_checkpoints_and_the_best_model_are_kept(labels: Path, out: Path) -> None:
    assert run_training(labels, out, tiny_train_config(5, "run.checkpoint_every=1", "data.validation=2"))
    assert steps_kept(out) == [3, 4, 5]
    losses = {line["step"]: line["loss_validation"] for line in lines_of(out)}
    _, best = load_model(out / "best.safetensors")
    assert best["loss"] == pytest.approx(min(losses.values()))
    assert losses[best["step"]] == pytest.approx(best["loss"])


def test_learning_lowers_the_loss_and_finds_ancestors(labels: Path, out: Path) -> None:
    plain = (
        "data.scale=[1.0,1.0]",
        "data.flip=0",
        "optimizer.learning_rate=3e-3",
        "optimizer.schedule=constant",
        "run.log_every=1",
    )
    assert run_training(labels, out, tiny_train_config(60, *plain, "optimizer.batch_size=6", "run.checkpoint_every=60"))
    lines = lines_of(out)
    first, last = (sum(line["loss"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last < 0.6 * first
    assert lines[-1]["ancestor_balanced_accuracy"] > lines[0]["ancestor_balanced_accuracy"] + 0.1


def test_a_run_resumes_with_its_own_settings_from_anywhere(
    labels: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as context:
        after_steps(context, {2: lambda: signal.raise_signal(signal.SIGINT)})
        assert not run_training(labels, out, CONFIG)
    monkeypatch.chdir(tmp_path)
    sources, config = resumed_run(out, Sources(), [], {})
    assert config.model == CONFIG.model
    assert sources.labels is not None
    assert sources.labels.resolve() == labels.resolve()
    assert train_run(sources, out, config, device="cpu", workers=0)
    with pytest.raises(UsageError, match="there is no run"):
        resumed_run(tmp_path / "nowhere", Sources(), [], {})


def test_labels_that_changed_and_other_settings_are_refused(labels: Path, out: Path, tmp_path: Path) -> None:
    copied = tmp_path / "scene"
    shutil.copytree(labels.parent / "labels", copied / "labels")
    shutil.copytree(labels.parent / "images", copied / "images")
    assert run_training(copied / "labels", out, tiny_train_config(1))
    with pytest.raises(UsageError, match=r"other settings: optimizer.steps \(1 there, 2 now\)"):
        run_training(copied / "labels", out, tiny_train_config(2))
    record = copied / "labels" / "a.png.json"
    record.write_text(record.read_text().replace('"score":1.0', '"score":0.99', 1))
    with pytest.raises(UsageError, match="a run on other labels"):
        run_training(copied / "labels", out, tiny_train_config(1))
    assert run_training(copied / "labels", out, tiny_train_config(1), overwrite=True)


def test_a_run_starts_from_the_model_of_another(labels: Path, out: Path, whole: Path) -> None:
    still = tiny_train_config(1, "optimizer.learning_rate=1e-9", "optimizer.weight_decay=0")
    assert run_training(labels, out, still, Sources(labels, init=whole))
    found, wanted = tensors_of(out, 1), tensors_of(whole, STEPS)
    for name in ("model.query_decoder.query_feat.weight", "model.ancestor_head.w1"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)
    with pytest.raises(WeightsError, match="does not fit this model"):
        run_training(
            labels, out.with_name("other"), tiny_train_config(1, "model.queries=10"), Sources(labels, init=whole)
        )


def test_more_labels_than_queries_and_no_labels_at_all_can_be_learned_from(
    labels: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_training(labels, out, tiny_train_config(2, "model.queries=3", "optimizer.batch_size=6"))
    assert all(math.isfinite(line["loss"]) and line["labels_left_out"] > 0 for line in lines_of(out))
    assert capsys.readouterr().err.count("more labels than the model has queries (3)") == 1
    negative = out.with_name("negative")
    shutil.copytree(labels.parent / "labels", negative / "labels")
    shutil.copytree(labels.parent / "images", negative / "images")
    for path in (negative / "labels").rglob("*.png.json"):
        if path.name != "f.png.json":
            path.unlink()
    assert run_training(negative / "labels", out.with_name("none"), tiny_train_config(2, "optimizer.batch_size=2"))
    line = lines_of(out.with_name("none"))[-1]
    assert line["loss_mask"] == line["loss_dice"] == line["loss_ancestor"] == 0
    assert line["loss_class"] > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    labels: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = learner.segmentation_losses, []

    def broken(*arguments: Any) -> dict[str, Any]:
        calls.append(None)
        losses = original(*arguments)
        return losses if len(calls) < 3 else {name: loss * float("inf") for name, loss in losses.items()}

    monkeypatch.setattr(learner, "segmentation_losses", broken)
    config = tiny_train_config(4, "run.checkpoint_every=1")
    with pytest.raises(SohesError, match=r"not finite at step 3 .*photographs .*\.png"):
        run_training(labels, out, config)
    assert steps_kept(out) == [1, 2]
    assert all(bool(t.isfinite().all()) for name, t in tensors_of(out, 2).items() if name.startswith("model."))


def test_want_of_memory_names_settings_that_lower_it(labels: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_arguments: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(learner, "segmentation_losses", no_memory)
    with pytest.raises(
        SohesError, match=r"does not suffice for --batch-size 4.*optimizer\.accumulate.*optimizer\.checkpointing"
    ):
        run_training(labels, out)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_takes_nearly_the_steps_of_full(labels: Path, out: Path, whole: Path, precision: str) -> None:
    assert run_training(
        labels, out, tiny_train_config(STEPS, "model.drop_path=0.2", f"optimizer.precision={precision}")
    )
    half, full = ([line["loss"] for line in lines_of(folder)] for folder in (out, whole))
    assert half[0] == pytest.approx(full[0], rel=0.1)
    assert half != full
    assert all(bool(t.isfinite().all()) for name, t in tensors_of(out, STEPS).items() if name.startswith("model."))


def test_checkpointing_changes_no_step(labels: Path, out: Path, whole: Path) -> None:
    assert run_training(labels, out, tiny_train_config(STEPS, "model.drop_path=0.2", "optimizer.checkpointing=true"))
    for mine, other in zip(lines_of(out), lines_of(whole), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
