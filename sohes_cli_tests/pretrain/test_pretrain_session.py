"""Whole runs of `sohes pretrain`, disturbed or not: all end with the same bits, and no bad checkpoint takes the place
of a good one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from pretrain_cases import FLAGS, tiny_config
from tolerances import RELATIVE_RMS, assert_near
from train_cases import assert_same_runs, lines_of, steps_kept, tensors_of

from sohes_cli.errors import SohesError
from sohes_cli.pretrain import diagnostics, training
from sohes_cli.pretrain.session import pretrain_folder
from sohes_cli.pretrain.training import Pretraining
from sohes_cli.runs import interruption
from sohes_cli.vit.pretrained import BACKBONE_FORMAT, BACKBONE_NAME
from sohes_cli.vit.tensor_file import read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sohes_cli.pretrain.config import PretrainConfig

PATIENCE_S = 120
STEPS = 6
CONFIG = tiny_config(STEPS)  # all terms of the loss, and stochastic depth
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """The folder of a run that nothing disturbed."""
    out = photos.parent / "whole"
    assert train(photos, out)
    return out


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def train(photos: Path, out: Path, config: PretrainConfig = CONFIG, **options: Any) -> bool:
    return pretrain_folder(photos, out, config, device="cpu", **{"workers": 0} | options)


def after_steps(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], object]]) -> None:
    """Do something while a step is taken, by its number from 1."""
    step = Pretraining.step

    def changed(self: Pretraining, sample: Any, number: int, diagnosed: bool = False) -> dict[str, float]:
        numbers = step(self, sample, number, diagnosed)
        actions.get(number + 1, lambda: None)()
        return numbers

    monkeypatch.setattr(Pretraining, "step", changed)


def with_ranks(monkeypatch: pytest.MonkeyPatch, ranks: Iterator[float]) -> None:
    """Let the features' rank be measured as these, one after the other."""
    monkeypatch.setattr(diagnostics, "effective_rank", lambda _features: next(ranks))


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


@pytest.mark.parametrize("stops", [(1,), (3,), (5,), (1, 2, 3, 4, 5)], ids=str)
def test_a_run_that_was_stopped_is_the_run_that_was_not(
    photos: Path, out: Path, whole: Path, stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    after_steps(monkeypatch, dict.fromkeys(stops, interrupt))
    for done in stops:
        assert not train(photos, out)
        assert steps_kept(out)[-1] == done
        assert [line["step"] for line in lines_of(out)] == list(range(1, done + 1))
    assert train(photos, out)
    assert_same_runs(out, whole, STEPS)


def test_a_run_that_was_killed_repeats_the_steps_since_its_checkpoint(
    photos: Path, out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    config = tiny_config(STEPS, "run.checkpoint_every=2")  # how often it is saved decides nothing
    with monkeypatch.context() as context:
        after_steps(context, {6: kill})
        with pytest.raises(Killed):
            train(photos, out, config)
    assert (steps_kept(out), len(lines_of(out))) == ([2, 4], 5)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut off
    assert train(photos, out, config)
    assert steps_kept(out) == [2, 4, 6]
    assert_same_runs(out, whole, STEPS)


def test_the_seed_decides_the_weights(photos: Path, out: Path, whole: Path) -> None:
    assert train(photos, out, tiny_config(STEPS, "run.seed=1"))
    name = "teacher.vit.patch_embed.proj.weight"
    assert not tensors_of(out, STEPS)[name].equal(tensors_of(whole, STEPS)[name])


def test_sigterm_to_the_whole_group_while_workers_start(start: Callable, photos: Path, out: Path, whole: Path) -> None:
    process = start("pretrain", photos, "--out", out, "--device", "cpu", *FLAGS, "--steps", STEPS, "--workers", 1)
    deadline = time.monotonic() + PATIENCE_S
    while not workers_of(process.pid):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # as torchrun and schedulers do
    printed, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Stopping after this step" in errors
    assert f"Stopped after step 1 of {STEPS}; run the same command again to continue." in errors
    assert printed.startswith(f"Step 1 of {STEPS}: loss ")
    assert steps_kept(out) == [1]

    before = workers_of(os.getpid())  # other tests keep processes for their work
    assert train(photos, out, workers=1)
    assert_same_runs(out, whole, STEPS)
    assert workers_of(os.getpid()) == before


def test_a_second_ctrl_c_stops_at_once(
    photos: Path, out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupt_twice() -> None:
        interrupt()
        interrupt()

    with monkeypatch.context() as context:
        context.setattr(interruption, "_ECHO_S", -1.0)  # the second is no echo of the first
        after_steps(context, {5: interrupt_twice})
        assert not train(photos, out, tiny_config(STEPS, "run.checkpoint_every=2"))
    assert steps_kept(out) == [2, 4]
    message = f"Stopped after step 4 of {STEPS}; run the same command again to continue."
    assert message in capsys.readouterr().err
    assert train(photos, out)
    assert_same_runs(out, whole, STEPS)


def test_a_loss_that_is_not_finite_ends_the_run(
    photos: Path, out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = training.distillation_losses, iter(range(1, 100))

    def broken(*arguments: Any) -> dict[str, torch.Tensor]:
        factor = float("nan") if next(calls) == 5 else 1.0
        return {name: loss * factor for name, loss in original(*arguments).items()}

    config = tiny_config(STEPS, "run.checkpoint_every=2")
    with monkeypatch.context() as context:
        context.setattr(training, "distillation_losses", broken)
        with pytest.raises(SohesError, match="not finite at step 5 ") as caught:
            train(photos, out, config)
    assert "--learning-rate" in caught.value.hint
    assert steps_kept(out) == [2, 4]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(out, 4).values())
    assert train(photos, out, config)
    assert_same_runs(out, whole, STEPS)


def test_a_collapse_ends_the_run_and_keeps_the_checkpoint_from_before(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ranks(monkeypatch, iter([9.0, 9.0, 9.0, 0.0, 0.0, 0.0]))
    config = tiny_config(50, "run.checkpoint_every=2")
    with pytest.raises(
        SohesError, match=r"collapsed at step 6: .* rank is 0\.0, .* the checkpoint of step 2 is kept"
    ) as caught:
        train(photos, out, config)
    assert "begin anew" in caught.value.hint
    assert steps_kept(out) == [2]
    assert lines_of(out)[-1]["feature_rank"] == 0.0
    assert Pretraining(config, 50, "cpu").load(out / "checkpoints" / "step-00000002.safetensors") == (2, [])
    assert read_tensors(out / BACKBONE_NAME, BACKBONE_FORMAT)[1]["step"] == 2


def test_one_bad_measurement_only_puts_off_the_checkpoint(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ranks(monkeypatch, iter([9.0, 0.0, float("nan"), 9.0, 9.0, 9.0]))
    assert train(photos, out, tiny_config(STEPS, "run.checkpoint_every=2"))
    assert steps_kept(out) == [4, 6]


def test_features_are_measured_whenever_a_checkpoint_is_due(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ranks(
        monkeypatch, iter([9.0, 0.0, 9.0])
    )  # at steps 2 and 4 for checkpoints, at step 5 for the log and the end
    assert train(photos, out, tiny_config(5, "run.checkpoint_every=2", "run.log_every=5"))
    assert steps_kept(out) == [2, 5]
    assert [line["step"] for line in lines_of(out)] == [5]


def test_a_collapse_at_the_last_step_has_no_step_left_to_recover(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_ranks(monkeypatch, iter([9.0, 9.0, 0.0]))
    with pytest.raises(SohesError, match="collapsed at step 3"):
        train(photos, out, tiny_config(3, "run.checkpoint_every=2"))
    assert steps_kept(out) == [2]


def test_a_stop_amid_a_collapse_saves_nothing(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with_ranks(monkeypatch, iter([9.0, 9.0, 0.0]))
    after_steps(monkeypatch, {3: interrupt})
    assert not train(photos, out, tiny_config(STEPS, "run.checkpoint_every=2"))
    assert steps_kept(out) == [2]
    assert (
        "Stopped after step 3 of 6; the newest checkpoint is that of step 2; run the same command again to continue."
        in capsys.readouterr().err
    )


def test_photographs_that_cannot_be_read_are_replaced_and_named_to_the_end(
    photos: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "c-eyes.png").write_bytes(b"no photograph")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    with monkeypatch.context() as context:
        after_steps(context, {4: interrupt})
        assert not train(folder, out)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Failed: ")]
    assert [name in line for name, line in zip(("gone.png", "c-eyes.png"), errors, strict=True)] == [True, True]
    with pytest.raises(SohesError, match=r"2 of 9 photographs could not be read: .*gone\.png.*c-eyes\.png"):
        train(folder, out, as_json=True)
    printed = capsys.readouterr()
    assert [
        name
        for name in ("gone.png", "c-eyes.png")
        if any(name in failure for failure in json.loads(printed.out)["failed"])
    ] == ["gone.png", "c-eyes.png"]
    assert steps_kept(out)[-1] == STEPS


def test_nothing_but_damaged_photographs(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_text("no photograph")
    with pytest.raises(SohesError, match="2 photographs in a row cannot be read; the last: ") as caught:
        train(folder, out, workers=1)
    assert "Traceback" not in str(caught.value)


def test_two_processes_take_the_steps_of_one(start: Callable, photos: Path, out: Path, tmp_path: Path) -> None:
    settings = ("model.drop_path=0", "run.log_every=1")
    assert train(photos, out, tiny_config(3, *settings))
    two = tmp_path / "two"
    flags = [part for setting in settings for part in ("--set", setting)]
    command = ("--nproc_per_node", 2, "-m", "sohes_cli", "pretrain", photos, "--out", two, *FLAGS, *flags)
    process = start(*command, "--steps", 3, "--workers", 0, "--device", "cpu", module="torch.distributed.run")
    printed, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "2 processes on cpu" in errors
    assert printed.count("The backbone is") == 1
    for found, wanted in zip(lines_of(two), lines_of(out), strict=True):
        losses = [name for name in wanted if name.startswith("loss")]
        assert len(losses) == 4
        assert {name: found[name] for name in losses} == pytest.approx(
            {name: wanted[name] for name in losses}, rel=RELATIVE_RMS[torch.float32]
        )
    assert_near(
        *({name: _without_key_bias(name, t) for name, t in tensors_of(run, 3).items()} for run in (two, out)),
        torch.float32,
    )


def _without_key_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """No softmax changes with the bias of keys: its gradient is rounding and nothing else, and AdamW takes steps of
    full size along it.
    """
    return tensor.view(3, -1)[[0, 2]] if name.endswith("qkv.bias") else tensor
