"""One run of `sohes segment`: photographs in batches through a model, to the terminal or into a label folder.

A label folder, in which an interrupted run continues, holds NAME.json, NAME.overlay.jpg and, if forests are cut,
NAME.partition.png and NAME.partition.jpg of each photograph; its readers skip the pictures. A partition follows from a
record, so it is drawn anew for photographs labeled before.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.images.reading import Photograph, read_photograph
from sohes_cli.inference.forest import ForestAgreement
from sohes_cli.inference.partition import cut_level_of, write_partition
from sohes_cli.inference.report import SHOWN_MASKS, print_line, print_segment_json, print_segment_summary, print_tree
from sohes_cli.labels.manifest import images_entry, open_store
from sohes_cli.runs.files import write_atomically
from sohes_cli.runs.labeling import (
    LabelingOutcome,
    PhotographResult,
    announce_labeling,
    conclude_labeling,
    labeling,
    sort_names,
)
from sohes_cli.runs.processes import available_cores, result_of, submitted
from sohes_cli.runs.shards import Shard, shard_of_environment
from sohes_cli.view.jpeg import jpeg_bytes
from sohes_cli.view.overlay import MAX_PICTURE_SIDE, overlay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sohes_cli.inference.inputs import ImageSet
    from sohes_cli.inference.methods import Labeled, Method
    from sohes_cli.labels.store import LabelStore
    from sohes_cli.runs.progress import ProgressBar
    from sohes_cli.structures import LabelRecord

__all__ = ["Cut", "OutputOptions", "segment_images"]

_PICTURES = {"overlay": ".overlay.jpg", "partition": ".partition.png", "partition_picture": ".partition.jpg"}


@dataclass(frozen=True)
class Cut:
    """Cut of a forest into a partition: at a level, or at a share of each forest's depth if `granularity` is given."""

    level: int = 0
    granularity: float | None = None

    def of(self, record: LabelRecord) -> int:
        """Return the level at which the forest of a record is cut."""
        return self.level if self.granularity is None else cut_level_of(record, self.granularity)


@dataclass(frozen=True)
class OutputOptions:
    """Destination and form of the labels.

    Args:
        out: the label folder; None to print the labels.
        tree: print the forest of every photograph.
        as_json: print one JSON object and nothing else.
        cut: cut of the forests for a partition; None for no partition.
        pictures: draw the overlay of every photograph into the label folder.
        overwrite: remove the labels in the folder first.

    Raises:
        UsageError: if an option of a label folder is given without one.
    """

    out: Path | None = None
    tree: bool = False
    as_json: bool = False
    cut: Cut | None = None
    pictures: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.out is None and (self.cut is not None or self.overwrite):
            partition = "A partition is written to a folder: --out is missing."
            overwrite = "--overwrite removes the labels in --out, which is missing."
            raise UsageError(overwrite if self.cut is None else partition, "Name a folder with --out DIR.")


def segment_images(
    images: ImageSet, method: Method, options: OutputOptions, at_end: Callable[[LabelingOutcome], object] | None = None
) -> bool:
    """Label photographs; in a label folder, those that have no record yet.

    Args:
        method: a trained model, or phase 1.
        options: destination and form of the labels.
        at_end: called with the outcome of this process instead of printing it.

    Returns:
        True if all are done; False after Ctrl-C or SIGTERM, where the same call continues.

    Raises:
        SohesError: if the run cannot start or go on.
        PartialFailure: if a photograph failed, after all others are done.
    """
    shard = shard_of_environment()
    if options.overwrite and shard.count > 1:
        hint = "Delete the folder first, or run once without a launcher."
        raise UsageError("--overwrite cannot be used with several processes.", hint)
    run = _Run(images, method, options, shard)
    if not options.as_json:
        announce_labeling(method.description, run.outcome)
    run.work()
    if at_end is not None:
        at_end(run.outcome)
    elif options.as_json:
        print_segment_json(run.outcome, method.identity, run.agreement, options.out, run.entries())
    else:
        print_segment_summary(run.outcome, run.agreement, options.out is not None)
    hint = "The messages above say why; all others are done."
    return conclude_labeling(run.outcome, "segmented", hint, continues=options.out is not None)


class _Run:
    """Photographs of this process, to do and done.

    Attributes:
        outcome: counts and failures.
        agreement: agreement of the two forests over all photographs of this run; None without an ancestor head.
    """

    def __init__(self, images: ImageSet, method: Method, options: OutputOptions, shard: Shard) -> None:
        self._images, self._method, self._options = images, method, options
        self._store: LabelStore | None = None
        if options.out is not None:
            manifest = method.manifest(images_entry(options.out, images.root))
            self._store = open_store(options.out, manifest, options.overwrite)
        names = shard.pick(images.names)
        unreadable = [(name, f"{name}: {reason}.") for name, reason in images.unreadable if shard.index == 0]
        self._todo, self._done, failed = sort_names(names, self._store.has if self._store else lambda _: False)
        self._records: list[LabelRecord] = []
        self.agreement: ForestAgreement | None = None
        self.outcome = LabelingOutcome(
            options.out or images.root, len(names) + len(unreadable), len(self._done), shard, failed=unreadable + failed
        )

    def work(self) -> None:
        """Label the photographs that are left, until a signal."""
        with labeling(self.outcome, len(self._todo)) as (bar, stopped):
            if self._store is not None and self._options.cut is not None:
                self._cut_again(self._store, self._options.cut, bar, stopped)
            self._segment_all(bar, stopped)

    def entries(self) -> list[dict[str, Any]]:
        """Return for JSON the records, or the files of every photograph in the label folder."""
        if self._store is None:
            return [record.to_json() for record in self._records]
        return [self._files(name, self._store) for name in sorted(self._done)]

    def _files(self, name: str, store: LabelStore) -> dict[str, Any]:
        pictures = {kind: store.root / (name + suffix) for kind, suffix in _PICTURES.items()}
        there = {kind: str(path) for kind, path in pictures.items() if path.is_file()}
        return {"name": name, "record": str(store.record_path(name)), **there}

    def _cut_again(self, store: LabelStore, cut: Cut, bar: ProgressBar, stopped: Callable[[], bool]) -> None:
        """Draw the partitions of photographs labeled before."""
        for name in list(self._done):
            if stopped():
                return
            try:
                record = store.read(name)
                write_partition(store.root, self._read(name, MAX_PICTURE_SIDE).pixels, record, cut.of(record))
            except SohesError as error:
                self._done.remove(name)
                self.outcome.done_before -= 1
                self.outcome.failed.append((name, str(error)))
                bar.fail(str(error))

    def _segment_all(self, bar: ProgressBar, stopped: Callable[[], bool]) -> None:
        times = self.outcome.step_times
        with ThreadPoolExecutor(min(self._method.batch_size, available_cores())) as threads:
            batches = self._batches(threads)
            while not stopped():
                with times.step("reading"):
                    batch = next(batches, None)
                if batch is None:
                    return
                for failed in batch:
                    if isinstance(failed, PhotographResult):
                        self.outcome.add(failed, bar)
                self._segment([photo for photo in batch if isinstance(photo, Photograph)], bar)

    def _batches(self, threads: ThreadPoolExecutor) -> Iterator[list[Photograph | PhotographResult]]:
        """Read photographs, or failures, in batches; the next one is read while one is segmented."""
        size, todo = self._method.batch_size, self._todo
        coming = [submitted(threads, self._read_or_fail, name) for name in todo[:size]]
        for start in range(size, len(todo) + size, size):
            following = [submitted(threads, self._read_or_fail, name) for name in todo[start : start + size]]
            yield [result_of(future) for future in coming]
            coming = following

    def _read_or_fail(self, name: str) -> Photograph | PhotographResult:
        try:
            return self._read(name, self._method.working_size)
        except SohesError as error:
            return PhotographResult(name, error=str(error))

    def _read(self, name: str, working_size: int) -> Photograph:
        return read_photograph(self._images.root / name, name, working_size)

    def _segment(self, photographs: Sequence[Photograph], bar: ProgressBar) -> None:
        """Label a batch and output its labels; an unexpected error fails this batch alone."""
        times = self.outcome.step_times
        try:
            with times.step("segmenting"):
                labeled = self._method.label(photographs)
        except SohesError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            for photo in photographs:
                error_line = f"{photo.name} could not be segmented ({reason})."
                self.outcome.add(PhotographResult(photo.name, error=error_line), bar)
            return
        with times.step("writing"):
            for photo, labels in zip(photographs, labeled, strict=True):
                self.outcome.add(self._output(photo, labels), bar)

    def _output(self, photo: Photograph, labeled: Labeled) -> PhotographResult:
        record, options = labeled.record, self._options
        if self._store is not None:
            self._write(photo, record, self._store)
        elif options.as_json:
            self._records.append(record)
        if not options.as_json:
            self._print(record)
        if labeled.agreement is not None:
            self.agreement = (self.agreement or ForestAgreement()) + labeled.agreement
        return PhotographResult(photo.name, len(record.annotations))

    def _write(self, photo: Photograph, record: LabelRecord, store: LabelStore) -> None:
        """Replace the pictures, then write the record, which marks the photograph as done."""
        pictures = {kind: store.root / (photo.name + suffix) for kind, suffix in _PICTURES.items()}
        for path in pictures.values():
            with suppress(OSError):  # writing the new one raises the error
                path.unlink(missing_ok=True)
        if self._options.pictures:
            write_atomically(pictures["overlay"], [jpeg_bytes(overlay(photo.pixels, record, SHOWN_MASKS))])
        if self._options.cut is not None:
            write_partition(store.root, photo.pixels, record, self._options.cut.of(record))
        store.write(record)
        self._done.append(photo.name)

    def _print(self, record: LabelRecord) -> None:
        if self._options.tree or (self._store is None and len(self._images) == 1):
            print_tree(record)
        elif self._store is None:
            print_line(record)
