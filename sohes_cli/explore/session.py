"""One run of `sohes explore`: open the label folder, do what is not done yet, sum up.

What decides the labels is in the settings and the manifest; what only decides the speed (workers, device) is not.
"""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import typer

from sohes_cli.errors import PartialFailure, StoreError, UsageError
from sohes_cli.explore.cascade_psp import load_refiner
from sohes_cli.explore.features import EMBEDDED, Backbone, build_backbone
from sohes_cli.explore.report import announce, print_outcome
from sohes_cli.explore.runner import Job, explore_names
from sohes_cli.explore.segmentation import default_thresholds
from sohes_cli.images.image_list import listed_images
from sohes_cli.images.listing import list_images
from sohes_cli.labels.manifest import Manifest, images_entry, open_store
from sohes_cli.runs.interruption import StopRequest
from sohes_cli.runs.processes import available_cores
from sohes_cli.runs.progress import Outcome, Progress
from sohes_cli.runs.shards import Shard, shard_of_environment, wait_for_others
from sohes_cli.settings import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sohes_cli.explore.config import ExploreConfig
    from sohes_cli.labels.store import LabelStore

__all__ = ["explore_folder"]

_GPU_WORKERS = 8
_PACKAGES = ("sohes", "numpy", "scipy", "numba", "opencv-python-headless", "scikit-image", "pillow")
_SHOWN_FAILURES = 5


def explore_folder(
    images: Path,
    out: Path,
    config: ExploreConfig,
    *,
    workers: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    as_json: bool = False,
    image_list: Path | None = None,
    at_end: Callable[[Outcome], object] | None = None,
) -> bool:
    """Label every photograph of a folder that has no record yet.

    Args:
        images: the image folder.
        out: the label folder.
        config: the settings.
        workers: worker processes, 0 for one a core.
        device: a torch device or `auto`.
        overwrite: remove an old label set first.
        as_json: print the summary as JSON instead of a table.
        image_list: a file that names the images to label; None for all of the folder.
        at_end: given the outcome of this process in place of printing it.

    Returns:
        Whether all were done; false after Ctrl-C or SIGTERM, and the same call continues.

    Raises:
        SohesError: if the run cannot start.
        PartialFailure: if a photograph failed, after all others are done.
    """
    shard = shard_of_environment()
    if overwrite and shard.count > 1:
        raise UsageError(
            "--overwrite cannot be used with several processes.", f"Delete {out} first, or run once without a launcher."
        )
    listing = list_images(images) if image_list is None else listed_images(images, image_list)
    device = _own_device(device, config, shard)
    backbone = build_backbone(config.features, device)
    if config.refinement.method == "cascadepsp":
        load_refiner("cpu")  # here, so that a missing package fails the run at once and not every photograph of it
    store = open_store(out, _manifest(images, out, config, backbone), overwrite)
    names = shard.pick(listing.names)
    todo, failed = _todo(store, names)
    done_before = len(names) - len(todo) - len(failed)
    failed += [(name, f"{name}: {reason}.") for name, reason in listing.unreadable if shard.index == 0]
    outcome = Outcome(out, len(todo) + done_before + len(failed), done_before, shard)
    if not as_json:
        announce(backbone, outcome)
    _work(Job(images, out, config, device), todo, failed, outcome, workers, backbone)
    if at_end is None:
        print_outcome(outcome, as_json)
    else:
        at_end(outcome)
    wait_for_others(shard, failed=bool(outcome.summary.failed) and not outcome.interrupted)
    return _conclude(outcome)


def _own_device(device: str, config: ExploreConfig, shard: Shard) -> str:
    """The device of this process; the embedded backbones have no use for a GPU."""
    return device if config.features.backbone in EMBEDDED else shard.own_device(device)


def _manifest(images: Path, out: Path, config: ExploreConfig, backbone: Backbone) -> Manifest:
    settings = to_plain(config)
    settings["features"]["backbone"] = backbone.name
    settings["features"]["weights"] = backbone.identity[
        "weights"
    ]  # the hash below tells weights apart, a path would not
    settings["features"]["precision"] = backbone.precision
    thresholds = {
        a: list(config.merging.thresholds or default_thresholds(a, backbone)) for a in config.merging.affinities
    }
    packages = _PACKAGES if config.features.backbone in EMBEDDED else (*_PACKAGES, "torch", "timm")
    return Manifest(
        phase="explore",
        images=images_entry(out, images),
        config=settings,
        backbone={**backbone.identity, "thresholds": thresholds},
        versions={name: _version(name) for name in packages},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"  # OpenCV comes under several names


def _todo(store: LabelStore, names: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The names without a record, and those that cannot have one with the reason."""
    todo, failed = [], []
    for name in names:
        try:
            if not store.has(name):
                todo.append(name)
        except StoreError as error:
            failed.append((name, str(error)))
        except OSError as error:
            failed.append((name, f"{name} cannot have a label record: {error.strerror}. Rename the image."))
    return todo, failed


def _default_workers(config: ExploreConfig, device: str, shard: Shard) -> int:
    share = max(1, available_cores() // shard.local_count)
    if config.features.backbone not in EMBEDDED and device != "cpu":
        import torch

        share = min(share, _GPU_WORKERS) if torch.cuda.is_available() else share  # each worker holds a model
    return share


def _work(
    job: Job, todo: list[str], failed: list[tuple[str, str]], outcome: Outcome, workers: int, backbone: Backbone
) -> None:
    """Do what is to be done and keep the outcome up to date."""
    start = time.perf_counter()
    outcome.summary.failed.extend(failed)
    with Progress(outcome, len(todo)) as progress, StopRequest() as stop:
        for _, error in failed:
            progress.fail(error)
        processes = min(workers or _default_workers(job.config, job.device, outcome.shard), len(todo))
        try:
            if todo:
                explore_names(job, todo, processes, progress, stop.is_set, backbone)
        except KeyboardInterrupt:  # the second Ctrl-C; what was in work is left for the next run
            pass
        outcome.interrupted = stop.is_set() and outcome.left > 0
    outcome.seconds = time.perf_counter() - start


def _conclude(outcome: Outcome) -> bool:
    summary = outcome.summary
    if outcome.interrupted:
        typer.echo(
            f"Stopped with {outcome.left} of {outcome.total} to do. Run the same command again to continue.", err=True
        )
        return False
    if summary.failed:
        names = ", ".join(name for name, _ in sorted(summary.failed)[:_SHOWN_FAILURES])
        more = ", ..." if len(summary.failed) > _SHOWN_FAILURES else ""
        raise PartialFailure(
            f"{len(summary.failed)} of {outcome.total} could not be labeled: {names}{more}",
            "The messages above say why; all others have labels. Mend or remove these files and run the same command again.",
        )
    return True
