"""Messages of a training run: failures once, numbers that other programs can read, and how to continue an unfinished
run.
"""

from __future__ import annotations

import io
import json
import math
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sohes_cli.errors import SohesError
from sohes_cli.training.distribution import make_accelerator
from sohes_cli.training.report import (
    TrainingOutcome,
    announce_training,
    conclude_training,
    peak_memory_gib,
    shown_numbers,
    training_bar,
)

if TYPE_CHECKING:
    from pathlib import Path

ENDING = ("The model is there.", "Next: use it.")


def outcome_of(out: Path, done: int = 0, **changes: Any) -> TrainingOutcome:
    """A run of 10 steps of 4 over 20 photographs."""
    return TrainingOutcome(out, 20, 10, 4, **{"done": done, "saved": done} | changes)


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_with_loss_rate_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    outcome = outcome_of(tmp_path, done=2)
    numbers = {"loss": 1.23456, "learning_rate": 5e-4, "memory_gib": 2.71, "loss_mask": 9.0, "teacher_new": math.nan}
    with training_bar(outcome, shown=True) as bar:
        bar.advance(outcome.batch_size, **shown_numbers(numbers))
    shown = terminal.getvalue()
    assert "8/40" in shown
    assert "12/40" in shown
    assert "img" in shown
    assert "loss=1.235, lr=5.0e-04, GiB=2.7" in shown
    assert "9.0" not in shown
    assert "new" not in shown


@pytest.mark.parametrize("is_terminal", [False, True])
def test_nothing_but_failures_is_printed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal() if is_terminal else io.StringIO())
    outcome = outcome_of(tmp_path)
    with training_bar(outcome, shown=not is_terminal) as bar:
        bar.advance(4, **shown_numbers({"loss": 1.0, "learning_rate": 0.1}))
        bar.fail(*outcome.add_failures(["a.png\nis damaged.", "b.png is empty."]))
        bar.fail(*outcome.add_failures(("b.png is empty.", "c.png is empty.")))
    assert stream.getvalue().splitlines() == [
        r"Failed: a.png\nis damaged.",
        "Failed: b.png is empty.",
        "Failed: c.png is empty.",
    ]
    assert list(outcome.failed) == ["a.png\nis damaged.", "b.png is empty.", "c.png is empty."]


def test_the_outcome_is_json_whatever_its_numbers(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, seconds=1.23456, numbers={"loss": 1 / 3, "nan": math.nan, "inf": -math.inf})
    outcome.resume(4, ["a.png is empty."])
    outcome.done = 7
    assert json.loads(json.dumps(outcome.to_json(), allow_nan=False)) == {
        "run": str(tmp_path),
        "photographs": 20,
        "steps": 10,
        "done_before": 4,
        "done": 7,
        "saved": 4,
        "interrupted": True,
        "seconds": 1.235,
        "numbers": {"loss": 0.333333, "nan": None, "inf": None},
        "failed": ["a.png is empty."],
    }


def test_the_throughput_is_that_of_this_call(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, done=5, done_before=3)
    assert outcome.timed(0.5) == {"images_per_second": pytest.approx(2 * 4 / 0.5), "seconds": 0.5}
    assert outcome.seconds == 0.5


def test_memory_is_at_least_what_is_held() -> None:
    before = peak_memory_gib(torch.device("cpu"))
    held = torch.ones(2**26)  # a quarter of a GiB
    after = peak_memory_gib(torch.device("cpu"))
    assert 0.25 <= after < 1024
    assert after >= before
    assert held[0] == 1


def test_a_run_announces_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announce_training("small model", make_accelerator("cpu"), "fp32", outcome_of(tmp_path, done=2))
    assert capsys.readouterr().err.splitlines() == [
        "small model; 1 process on cpu, fp32.",
        "20 photographs, 10 steps of 4, 2 of them done before.",
    ]


@pytest.mark.parametrize(
    ("done", "numbers", "printed"),
    [
        (
            10,
            {"loss": 1 / 3, "other": 1.0, "images_per_second": 12.0},
            ["Step 10 of 10: loss 0.333, images per second 12.", *ENDING],
        ),
        (4, {"loss": 1 / 3}, ["Step 4 of 10: loss 0.333."]),
        (10, {}, ["All 10 steps of the run in {out} were done before.", *ENDING]),
        (4, {}, []),
    ],
)
def test_the_end_is_printed(
    tmp_path: Path, capsys: Any, done: int, numbers: dict[str, float], printed: list[str]
) -> None:
    outcome, given = outcome_of(tmp_path, done, numbers=numbers), []
    assert conclude_training(outcome, "model", ("loss", "accuracy", "images_per_second"), ENDING) == (done == 10)
    assert capsys.readouterr().out.splitlines() == [line.format(out=tmp_path) for line in printed]
    conclude_training(outcome, "model", (), ENDING, as_json=True)
    assert json.loads(capsys.readouterr().out) == outcome.to_json()
    conclude_training(outcome, "model", (), ENDING, at_end=given.append)
    assert (capsys.readouterr().out, given) == ("", [outcome])


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (6, "Stopped after step 6 of 10; run the same command again to continue."),
        (
            4,
            "Stopped after step 6 of 10; the newest checkpoint is that of step 4; run the same command again "
            "to continue.",
        ),
        (0, "Stopped after step 6 of 10; run the same command again to begin anew, for there is no checkpoint yet."),
    ],
)
def test_an_unfinished_run_says_how_it_goes_on(tmp_path: Path, capsys: Any, saved: int, words: str) -> None:
    outcome = outcome_of(tmp_path, 6, saved=saved, failed={"a.png is empty.": None})
    assert not conclude_training(outcome, "model", (), ENDING)
    assert capsys.readouterr().err.strip() == words


def test_a_finished_run_fails_for_photographs_that_failed(tmp_path: Path) -> None:
    assert conclude_training(outcome_of(tmp_path, 10), "model", (), ENDING)
    failed = {f"{name}.png\nis empty.": None for name in "abcdef"}
    with pytest.raises(
        SohesError, match=r"^6 of 20 photographs could not be read: a\.png\\nis empty\.; .*e\.png\\nis empty\.; \.\.\. "
    ) as caught:
        conclude_training(outcome_of(tmp_path, 10, failed=failed), "model", (), ENDING)
    assert caught.value.hint == "The model was trained on the others."
