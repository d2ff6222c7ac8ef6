"""Labels of many photographs, in one process or in several.

A worker takes a photograph from file to stored record, so only names and numbers pass between processes, and an
interrupted run continues with the photographs that have no record.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_cli.errors import SohesError, StoreError
from sohes_cli.explore.features import EMBEDDED, Backbone, build_backbone
from sohes_cli.labels.store import LabelStore
from sohes_cli.runs.labeling import PhotographResult
from sohes_cli.runs.pool import run_tasks
from sohes_cli.runs.step_times import StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sohes_cli.explore.config import ExploreConfig

__all__ = ["ExploreJob", "explore_names"]

_KILLED_HINT = (
    "Run the same command again to go on where it stopped, with fewer --workers or a smaller --set units.working_size."
)


@dataclass(frozen=True)
class ExploreJob:
    """Folders, settings and device of a run."""

    images: Path
    labels: Path
    config: ExploreConfig
    device: str = "auto"


def explore_names(
    job: ExploreJob,
    names: Iterable[str],
    workers: int,
    report: Callable[[PhotographResult], object],
    stopped: Callable[[], bool] = lambda: False,
    backbone: Backbone | None = None,
) -> None:
    """Label photographs; one that fails is reported and the others go on.

    Args:
        names: photographs relative to the image folder; drawn one by one as workers become free.
        workers: worker processes; 1 works in this process.
        report: called after each photograph, in order of completion.
        stopped: polled; once true, the photographs in progress are finished and no other begins.
        backbone: the job's, if it is built already; only work in this process can use it.

    Raises:
        SohesError: if the backbone cannot be built, the label folder cannot be written, or a worker is killed.
    """
    work = _Labeler(job, backbone if workers <= 1 else None)
    # one more in flight than there are workers, so that none waits
    run_tasks(work, names, workers, report, in_flight=workers + 1, killed_hint=_KILLED_HINT, stopped=stopped)


class _Labeler:
    """Labels one photograph after the other; the backbone is built with the first, whose result can carry an error."""

    def __init__(self, job: ExploreJob, built: Backbone | None) -> None:
        self.job, self.store = job, LabelStore(job.labels)
        self._built = built
        self._backbone: Backbone | None = None

    def __call__(self, name: str) -> PhotographResult:
        """Label one photograph; its failure is part of the result.

        Raises:
            StoreError: if the record cannot be written, as then no other could be either.
            SohesError: if the backbone cannot be built.
        """
        backbone = self._backbone = self._backbone or self._start()
        times = StepTimes()
        try:
            masks = self._explore(name, backbone, times)
        except StoreError:
            raise
        except SohesError as error:
            return PhotographResult(name, error=str(error))
        except MemoryError:
            reason = f"{name} does not fit into memory. Lower --set units.working_size or --workers."
            return PhotographResult(name, error=reason)
        except Exception as error:
            # one photograph must not end a run over many; it is reported, and the run fails at its end
            return PhotographResult(name, error=f"{name} could not be labeled ({_described(error)}).")
        return PhotographResult(name, masks, times)

    def _start(self) -> Backbone:
        try:
            import sohes_cli.explore.pipeline  # noqa: F401 (first, as only threads of loaded libraries can be limited)

            _limit_threads(self.job.config)
            return self._built or build_backbone(self.job.config.features, self.job.device)
        except SohesError:
            raise
        except Exception as error:
            reason = f"A worker process could not start ({_described(error)})."
            raise SohesError(reason, "Try fewer --workers.") from error

    def _explore(self, name: str, backbone: Backbone, times: StepTimes) -> int:
        from sohes_cli.explore.pipeline import explore_photograph
        from sohes_cli.images.reading import read_photograph

        with times.step("reading"):
            photo = read_photograph(self.job.images / name, name, self.job.config.units.working_size)
        record = explore_photograph(photo, backbone, self.job.config, times)
        with times.step("writing"):
            self.store.write(record)
        return len(record.annotations)


def _described(error: Exception) -> str:
    """Describe an unexpected error on one line, with its origin."""
    reason = " ".join(str(error).split())[:300]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {reason}".rstrip(": ")


def _limit_threads(config: ExploreConfig) -> None:
    """Give every library one thread: workers share the cores, and sums do not depend on the number of threads."""
    import cv2
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    threadpool_limits(limits=1)
    if config.features.backbone not in EMBEDDED:
        import torch

        torch.set_num_threads(1)
