"""Many photographs: worker processes that label them one by one, and a summary of what happened.

A worker takes a photograph from file to stored record, so nothing passes between processes but names and numbers, and an
interrupted run goes on with the photographs that have no record.
"""

from __future__ import annotations

import multiprocessing
import traceback
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_cli.errors import SohesError, StoreError
from sohes_cli.explore.features import EMBEDDED, Backbone, build_backbone
from sohes_cli.labels.store import LabelStore
from sohes_cli.runs.processes import children_killed_on, end_with_parent, first_finished, result_of, submitted
from sohes_cli.runs.progress import Done
from sohes_cli.runs.step_times import StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sohes_cli.explore.config import ExploreConfig

__all__ = ["Job", "explore_names"]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    images: Path
    labels: Path
    config: ExploreConfig
    device: str = "auto"


def explore_names(
    job: Job,
    names: Iterable[str],
    workers: int,
    report: Callable[[Done], None],
    stopped: Callable[[], bool] = lambda: False,
    backbone: Backbone | None = None,
) -> None:
    """Label photographs, in this process or in several.

    Args:
        job: folders and settings.
        names: photographs to do, relative to the image folder; drawn one by one as workers become free.
        workers: worker processes; 1 works in this process.
        report: called after each photograph, in order of completion; one that fails is reported and the others go on.
        stopped: asked again and again; once it is true, the photographs in work are finished and no other is begun.
        backbone: the job's, if it is built already; only work in this process can use it.

    Raises:
        SohesError: if the backbone cannot be built, the label folder cannot be written, or a worker is killed.
    """
    if workers > 1:
        _explore_in_workers(job, iter(names), workers, report, stopped)
        return
    worker = _Worker(job, backbone)
    for name in names:
        if stopped():
            return
        report(worker.explore(name))


def _explore_in_workers(
    job: Job, names: Iterator[str], workers: int, report: Callable[[Done], None], stopped: Callable[[], bool]
) -> None:
    """Keep one photograph more in flight than there are workers, so that none waits and memory does not grow with their number."""
    pending: set[Future[Done]] = set()
    with _worker_processes(job, workers, stopped) as executor:
        while True:
            if not stopped():
                pending |= {
                    submitted(executor, _explore_in_worker, name) for name in islice(names, workers + 1 - len(pending))
                }
            if not pending:
                return
            finished, pending = first_finished(pending)
            for future in finished:
                report(result_of(future))


@contextmanager
def _worker_processes(job: Job, workers: int, stopped: Callable[[], bool]) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes on demand, and end them with the block."""
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(job,)
    )

    try:
        with children_killed_on(KeyboardInterrupt):
            yield executor
    except BrokenProcessPool as error:
        if not stopped():  # else whoever asked us to stop has told the workers, too
            raise SohesError(
                "A worker process was killed, most likely for want of memory.",
                "Run the same command again to go on where it stopped, with fewer --workers or a smaller --set units.working_size.",
            ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """A backbone and a label store, ready for one photograph after the other."""

    def __init__(self, job: Job, backbone: Backbone | None = None) -> None:
        from sohes_cli.explore.pipeline import explore_photograph

        self._explore_photograph = explore_photograph
        _one_thread(job.config)
        self.job = job
        self.store = LabelStore(job.labels)
        self.backbone = backbone or build_backbone(job.config.features, job.device)

    def explore(self, name: str) -> Done:
        """Label one photograph; what is wrong with it is in the result.

        Raises:
            StoreError: if the record cannot be written, which no other photograph's could be either.
        """
        times = StepTimes()
        try:
            masks = self._explore(name, times)
        except StoreError:
            raise
        except SohesError as error:
            return Done(name, error=str(error))
        except MemoryError:
            return Done(name, error=f"{name} does not fit into memory. Lower --set units.working_size or --workers.")
        except Exception as error:
            # one photograph must not end a run over many; it is reported, and the run fails at its end
            return Done(name, error=f"{name} could not be labeled ({_described(error)}).")
        return Done(name, masks, times)

    def _explore(self, name: str, times: StepTimes) -> int:
        from sohes_cli.images.reading import read_photograph

        with times.step("reading"):
            photo = read_photograph(self.job.images / name, name, self.job.config.units.working_size)
        record = self._explore_photograph(photo, self.backbone, self.job.config, times)
        with times.step("writing"):
            self.store.write(record)
        return len(record.annotations)


_worker: _Worker | None = None
_job: Job | None = None


def _start_worker(job: Job) -> None:
    """Set this worker process up; the backbone is built with the first photograph, whose future can carry an error to the main process."""
    global _job
    _job = job
    end_with_parent()


def _explore_in_worker(name: str) -> Done:
    global _worker
    if _worker is None:
        if _job is None:
            raise RuntimeError("the worker process was not initialized")
        try:
            _worker = _Worker(_job)
        except SohesError:
            raise
        except Exception as error:
            raise SohesError(
                f"A worker process could not start ({_described(error)}).", "Try fewer --workers."
            ) from error
    return _worker.explore(name)


def _described(error: Exception) -> str:
    """An unforeseen error on one line, with the place where it arose."""
    reason = " ".join(str(error).split())[:300]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {reason}".rstrip(": ")


def _one_thread(config: ExploreConfig) -> None:
    """Give every library one thread: workers share the cores, and sums come out the same whatever their number."""
    import cv2
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    threadpool_limits(limits=1)
    if config.features.backbone not in EMBEDDED:
        import torch

        torch.set_num_threads(1)
