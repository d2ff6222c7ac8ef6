"""Worker processes: they give what one process gives, hold few photographs at a time, stop when asked, and fail with a
reason.
"""

from __future__ import annotations

import multiprocessing
import signal
from typing import TYPE_CHECKING

import pytest

from sohes_cli.errors import UsageError
from sohes_cli.explore.config import explore_config
from sohes_cli.explore.runner import ExploreJob, explore_names
from sohes_cli.runs.labeling import LabelingOutcome, PhotographResult
from sohes_cli.runs.step_times import StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.process import BaseProcess
    from pathlib import Path

WORKERS = 2


class Counted:
    """Names that know how many of them were drawn, and a report that knows how many photographs were in flight."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.drawn = 0
        self.done: list[PhotographResult] = []
        self.most_in_flight = 0

    def __iter__(self) -> Iterator[str]:
        for name in self.names:
            self.drawn += 1
            self.most_in_flight = max(self.most_in_flight, self.drawn - len(self.done))
            yield name

    def report(self, done: PhotographResult) -> None:
        self.done.append(done)


@pytest.fixture
def names(photos: Path) -> list[str]:
    return sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))


@pytest.fixture
def job(photos: Path, out: Path) -> ExploreJob:
    return ExploreJob(photos, out, explore_config())


def started(before: set[int | None]) -> list[BaseProcess]:
    """The processes of this one that were not there before; other tests keep some."""
    return [child for child in multiprocessing.active_children() if child.pid not in before]


@pytest.fixture
def before() -> set[int | None]:
    """The processes that were there when the test began."""
    return {child.pid for child in multiprocessing.active_children()}


def written(job: ExploreJob, labels_of: Callable) -> dict[str, bytes]:
    return labels_of(job.labels) if job.labels.exists() else {}


def test_two_workers_write_what_one_process_writes_and_hold_few_photographs(
    job: ExploreJob, names: list[str], reference: dict, labels_of: Callable, before: set[int | None]
) -> None:
    counted = Counted(names)
    explore_names(job, counted, WORKERS, counted.report)
    assert {**written(job, labels_of), "manifest.json": reference["manifest.json"]} == reference
    assert sorted(done.name for done in counted.done) == names
    assert counted.most_in_flight <= WORKERS + 1
    assert all(
        {"reading", "features", "merging", "hierarchy", "writing"} <= set(done.step_times.seconds)
        for done in counted.done
    )
    assert not started(before)


def test_a_stop_is_heeded_in_one_process(job: ExploreJob, names: list[str], labels_of: Callable) -> None:
    counted = Counted(names)
    explore_names(job, counted, 1, counted.report, stopped=lambda: len(counted.done) >= 2)
    assert [done.name for done in counted.done] == names[:2]
    assert sorted(written(job, labels_of)) == sorted(f"{name}.json" for name in names[:2])


def test_an_error_of_a_worker_reaches_the_main_process_with_its_hint(
    photos: Path, out: Path, before: set[int | None]
) -> None:
    config = explore_config(flags={"features.backbone": "color-texture", "features.weights": "none.pth"})
    with pytest.raises(UsageError, match="color-texture has no weights") as caught:
        explore_names(ExploreJob(photos, out, config), ["b-face.png"], WORKERS, lambda _: None)
    assert caught.value.hint
    assert not started(before)


def test_a_second_interruption_kills_the_workers(job: ExploreJob, names: list[str], before: set[int | None]) -> None:
    workers = []

    def interrupt(_: PhotographResult) -> None:
        workers.extend(started(before))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore_names(job, names, WORKERS, interrupt)
    assert not started(before)
    assert {child.pid for child in multiprocessing.active_children()} == before  # and no others
    assert len(workers) == WORKERS
    assert all(
        worker.exitcode in (-signal.SIGKILL, -signal.SIGTERM) for worker in workers
    )  # the pool terminates who outlives the first


def test_an_outcome_counts_masks_seconds_and_failures(tmp_path: Path) -> None:
    outcome = LabelingOutcome(tmp_path, total=4, done_before=0)
    outcome.add(PhotographResult("a.jpg", 3, StepTimes({"reading": 1.0})))
    outcome.add(PhotographResult("b.jpg", 4, StepTimes({"reading": 2.0, "merging": 0.5})))
    outcome.add(PhotographResult("c.jpg", error="c.jpg is empty."))
    assert (outcome.images, outcome.masks, outcome.failed, outcome.left) == (2, 7, [("c.jpg", "c.jpg is empty.")], 1)
    assert outcome.step_times.seconds == {"reading": 3.0, "merging": 0.5}
