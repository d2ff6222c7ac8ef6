"""One run of `sohes segment`: photographs in batches through a model, to the terminal or into a label folder that can be continued.

In a label folder everything of a photograph lies together: NAME.json, NAME.overlay.jpg and, if the forest is cut, NAME.partition.png
and NAME.partition.jpg; readers of label folders pass the pictures over. A partition follows from a record, so it is drawn anew for
photographs that were labeled before.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.images.reading import Photograph, read_photograph
from sohes_cli.inference.forest import ForestAgreement
from sohes_cli.inference.partition import cut_level_of, write_partition
from sohes_cli.inference.report import SHOWN_MASKS, announce, conclude, end_as_json, print_end, print_line, print_tree
from sohes_cli.labels.manifest import images_entry, open_store
from sohes_cli.runs.files import write_atomically
from sohes_cli.runs.interruption import StopRequest
from sohes_cli.runs.processes import available_cores, result_of, submitted
from sohes_cli.runs.progress import Done, Outcome, Progress
from sohes_cli.runs.shards import Shard, shard_of_environment, wait_for_others
from sohes_cli.view.jpeg import jpeg_bytes
from sohes_cli.view.overlay import LARGEST_SIDE, overlay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sohes_cli.inference.inputs import ImageSet
    from sohes_cli.inference.methods import Labeled, Method
    from sohes_cli.labels.store import LabelStore
    from sohes_cli.structures import LabelRecord

__all__ = ["Cut", "Delivery", "segment_images"]

_PICTURES = {"overlay": ".overlay.jpg", "partition": ".partition.png", "partition_picture": ".partition.jpg"}


@dataclass(frozen=True)
class Cut:
    """Where forests are cut for a partition: at a level, or at a share of each forest's depth if that is given."""

    level: int = 0
    granularity: float | None = None

    def of(self, record: LabelRecord) -> int:
        """The level at which the forest of a record is cut."""
        return self.level if self.granularity is None else cut_level_of(record, self.granularity)


@dataclass(frozen=True)
class Delivery:
    """What becomes of the labels.

    Args:
        out: the label folder; None to print them.
        tree: print the forest of every photograph.
        as_json: print one JSON object and nothing else.
        cut: where to cut forests for a partition; None for no partition.
        pictures: whether to draw the overlay of every photograph into the label folder.
        overwrite: remove the labels in the folder first.

    Raises:
        UsageError: if what belongs to a label folder is asked for without one.
    """

    out: Path | None = None
    tree: bool = False
    as_json: bool = False
    cut: Cut | None = None
    pictures: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.out is None and self.cut is not None:
            raise UsageError("A partition is written to a folder: --out is missing.", "Name a folder with --out DIR.")
        if self.out is None and self.overwrite:
            raise UsageError(
                "--overwrite removes the labels in --out, which is missing.", "Name a folder with --out DIR."
            )


def segment_images(
    images: ImageSet, method: Method, delivery: Delivery, at_end: Callable[[Outcome], object] | None = None
) -> bool:
    """Label photographs, those that have no record yet if there is a label folder.

    Args:
        images: the photographs.
        method: how they are labeled.
        delivery: what becomes of their labels.
        at_end: given the outcome of this process in place of printing it.

    Returns:
        Whether all were done; false after Ctrl-C or SIGTERM, and the same call continues.

    Raises:
        SohesError: if the run cannot start or go on.
        PartialFailure: if a photograph failed, after all others are done.
    """
    shard = shard_of_environment()
    if delivery.overwrite and shard.count > 1:
        raise UsageError(
            "--overwrite cannot be used with several processes.",
            "Delete the folder first, or run once without a launcher.",
        )
    run = _Run(images, method, delivery, shard)
    if not delivery.as_json:
        announce(method.description, run.outcome)
    run.work()
    if at_end is not None:
        at_end(run.outcome)
    elif delivery.as_json:
        end_as_json(run.outcome, method.identity, run.agreement, delivery.out, run.entries())
    else:
        print_end(run.outcome, run.agreement, delivery.out is not None)
    wait_for_others(shard, failed=bool(run.outcome.summary.failed) and not run.outcome.interrupted)
    return conclude(run.outcome, delivery.out is not None)


class _Run:
    """The photographs of this process, what is left to do of them, and what came of it.

    Attributes:
        outcome: counts and failures.
        agreement: of the two forests over all photographs of this run; None without an ancestor head.
    """

    def __init__(self, images: ImageSet, method: Method, delivery: Delivery, shard: Shard) -> None:
        self._images, self._method, self._delivery = images, method, delivery
        self._store: LabelStore | None = None
        if delivery.out is not None:
            self._store = open_store(
                delivery.out, method.manifest(images_entry(delivery.out, images.root)), delivery.overwrite
            )
        self._todo: list[str] = []
        self._done: list[str] = []
        self._records: list[LabelRecord] = []
        self.agreement: ForestAgreement | None = None
        names = shard.pick(images.names)
        failed = [(name, f"{name}: {reason}.") for name, reason in images.unreadable if shard.index == 0]
        total = len(names) + len(failed)
        failed += [(name, error) for name in names if (error := self._sort_in(name))]
        self.outcome = Outcome(delivery.out or images.root, total, len(self._done), shard)
        self.outcome.summary.failed.extend(failed)

    def _sort_in(self, name: str) -> str:
        """Put a name to those that are done or to be done; why it cannot have a record, or an empty string."""
        try:
            (self._done if self._store is not None and self._store.has(name) else self._todo).append(name)
        except StoreError as error:
            return str(error)
        except OSError as error:
            return f"{name} cannot have a label record: {error.strerror}. Rename the image."
        return ""

    def work(self) -> None:
        """Do what is to be done, until it is done or a signal comes."""
        start, outcome = time.perf_counter(), self.outcome
        with Progress(outcome, len(self._todo)) as progress, StopRequest() as stop:
            for _, error in outcome.summary.failed:
                progress.fail(error)
            try:
                if self._store is not None and self._delivery.cut is not None:
                    self._cut_again(self._store, self._delivery.cut, progress, stop.is_set)
                self._segment_all(progress, stop.is_set)
            except KeyboardInterrupt:  # the second Ctrl-C
                pass
            outcome.interrupted = stop.is_set() and outcome.left > 0
        outcome.seconds = time.perf_counter() - start

    def entries(self) -> list[dict[str, Any]]:
        """For JSON: the records, or the files of every photograph in the label folder."""
        if self._store is None:
            return [record.to_json() for record in self._records]
        return [self._files(name, self._store) for name in sorted(self._done)]

    def _files(self, name: str, store: LabelStore) -> dict[str, Any]:
        pictures = {kind: store.root / (name + suffix) for kind, suffix in _PICTURES.items()}
        there = {kind: str(path) for kind, path in pictures.items() if path.is_file()}
        return {"name": name, "record": str(store.record_path(name)), **there}

    def _cut_again(self, store: LabelStore, cut: Cut, progress: Progress, stopped: Callable[[], bool]) -> None:
        """Draw the partitions of photographs that were labeled before."""
        for name in list(self._done):
            if stopped():
                return
            try:
                record = store.read(name)
                write_partition(store.root, self._read(name, LARGEST_SIDE).pixels, record, cut.of(record))
            except SohesError as error:
                self._done.remove(name)
                self.outcome.done_before -= 1
                self.outcome.summary.failed.append((name, str(error)))
                progress.fail(str(error))

    def _segment_all(self, progress: Progress, stopped: Callable[[], bool]) -> None:
        times = self.outcome.summary.seconds
        with ThreadPoolExecutor(min(self._method.batch_size, available_cores())) as threads:
            batches = self._batches(threads)
            while not stopped():
                with times.step("reading"):
                    batch = next(batches, None)
                if batch is None:
                    return
                for failed in batch:
                    if isinstance(failed, Done):
                        progress(failed)
                self._segment([photo for photo in batch if isinstance(photo, Photograph)], progress)

    def _batches(self, threads: ThreadPoolExecutor) -> Iterator[list[Photograph | Done]]:
        """Photographs in batches, and the failures among them; while one batch is segmented the next is read."""
        size, todo = self._method.batch_size, self._todo
        coming = [submitted(threads, self._read_or_fail, name) for name in todo[:size]]
        for start in range(size, len(todo) + size, size):
            following = [submitted(threads, self._read_or_fail, name) for name in todo[start : start + size]]
            yield [result_of(future) for future in coming]
            coming = following

    def _read_or_fail(self, name: str) -> Photograph | Done:
        try:
            return self._read(name, self._method.working_size)
        except SohesError as error:
            return Done(name, error=str(error))

    def _read(self, name: str, working_size: int) -> Photograph:
        return read_photograph(self._images.root / name, name, working_size)

    def _segment(self, photographs: Sequence[Photograph], progress: Progress) -> None:
        """Label photographs and deliver their labels; an error that no setting explains costs these alone."""
        times = self.outcome.summary.seconds
        try:
            with times.step("segmenting"):
                labeled = self._method.label(photographs)
        except SohesError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            for photo in photographs:
                progress(Done(photo.name, error=f"{photo.name} could not be segmented ({reason})."))
            return
        with times.step("writing"):
            for photo, labels in zip(photographs, labeled, strict=True):
                progress(self._deliver(photo, labels))

    def _deliver(self, photo: Photograph, labeled: Labeled) -> Done:
        record, delivery = labeled.record, self._delivery
        if self._store is not None:
            self._write(photo, record, self._store)
        elif delivery.as_json:
            self._records.append(record)
        if not delivery.as_json:
            self._print(record)
        if labeled.agreement is not None:
            self.agreement = (self.agreement or ForestAgreement()) + labeled.agreement
        return Done(photo.name, len(record.annotations))

    def _write(self, photo: Photograph, record: LabelRecord, store: LabelStore) -> None:
        """Write the pictures, then the record, with which the photograph is done; pictures of older labels go."""
        pictures = {kind: store.root / (photo.name + suffix) for kind, suffix in _PICTURES.items()}
        for path in pictures.values():
            with suppress(OSError):  # what replaces it will say what is wrong
                path.unlink(missing_ok=True)
        if self._delivery.pictures:
            write_atomically(pictures["overlay"], [jpeg_bytes(overlay(photo.pixels, record, SHOWN_MASKS))])
        if self._delivery.cut is not None:
            write_partition(store.root, photo.pixels, record, self._delivery.cut.of(record))
        store.write(record)
        self._done.append(photo.name)

    def _print(self, record: LabelRecord) -> None:
        if self._delivery.tree or (self._store is None and len(self._images) == 1):
            print_tree(record)
        elif self._store is None:
            print_line(record)
