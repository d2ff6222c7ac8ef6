"""One run of `sohes explore`: open the label folder, label the photographs that are left, sum up.

Settings and manifest decide the labels; workers and device decide only the speed.
"""

from __future__ import annotations

import json
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import typer

from sohes_cli.errors import UsageError
from sohes_cli.explore.cascade_psp import load_refiner
from sohes_cli.explore.features import EMBEDDED, Backbone, build_backbone
from sohes_cli.explore.runner import ExploreJob, explore_names
from sohes_cli.explore.segmentation import default_thresholds
from sohes_cli.images.image_list import listed_images
from sohes_cli.images.listing import list_images
from sohes_cli.labels.manifest import Manifest, images_entry, open_store
from sohes_cli.runs.labeling import (
    LabelingOutcome,
    announce_labeling,
    conclude_labeling,
    labeling,
    print_labeling,
    sort_names,
)
from sohes_cli.runs.processes import available_cores
from sohes_cli.runs.shards import Shard, shard_of_environment
from sohes_cli.settings import to_plain
from sohes_cli.vit.bundled import BUNDLED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sohes_cli.explore.config import ExploreConfig

__all__ = ["explore_folder"]

_GPU_WORKERS = 8
_PACKAGES = ("sohes", "numpy", "scipy", "numba", "opencv-python-headless", "scikit-image", "pillow")
_WEIGHTS = {
    "none": "embedded, no weights",
    "hub": "pretrained",
    "file": "weights from a file",
    "random": "RANDOM weights",
    "bundled": "weights of the package",
    "pretrained": "weights of sohes pretrain",
}
_FAILED_HINT = (
    "The messages above say why; all others have labels. Mend or remove these files and run the same command again."
)


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
    at_end: Callable[[LabelingOutcome], object] | None = None,
) -> bool:
    """Label every photograph of a folder that has no record yet.

    Args:
        images: the image folder.
        out: the label folder.
        workers: worker processes, 0 for one a core.
        device: a torch device or `auto`.
        overwrite: remove an old label set first.
        as_json: print the summary as JSON instead of a table.
        image_list: a file that names the images to label; None for all of the folder.
        at_end: called with the outcome of this process instead of printing it.

    Returns:
        True if all are done; False after Ctrl-C or SIGTERM, where the same call continues.

    Raises:
        SohesError: if the run cannot start.
        PartialFailure: if a photograph failed, after all others are done.
    """
    shard = shard_of_environment()
    if overwrite and shard.count > 1:
        hint = f"Delete {out} first, or run once without a launcher."
        raise UsageError("--overwrite cannot be used with several processes.", hint)
    listing = list_images(images) if image_list is None else listed_images(images, image_list)
    device = _own_device(device, config, shard)
    backbone = build_backbone(config.features, device)
    if config.refinement.method == "cascadepsp":
        load_refiner("cpu")  # a missing package fails the run at once, not every photograph
    store = open_store(out, _manifest(images, out, config, backbone), overwrite)
    names = shard.pick(listing.names)
    todo, done, failed = sort_names(names, store.has)
    unreadable = [(name, f"{name}: {reason}.") for name, reason in listing.unreadable if shard.index == 0]
    outcome = LabelingOutcome(out, len(names) + len(unreadable), len(done), shard, failed=failed + unreadable)
    if not as_json:
        announce_labeling(_description(backbone), outcome)
    with labeling(outcome, len(todo)) as (bar, stopped):
        if todo:
            processes = min(workers or _default_workers(config, device, shard), len(todo))
            job = ExploreJob(images, out, config, device)
            explore_names(job, todo, processes, partial(outcome.add, bar=bar), stopped, backbone)
    if at_end is not None:
        at_end(outcome)
    elif as_json:
        typer.echo(json.dumps(outcome.to_json()))  # in ASCII, so that no locale can fail it
    else:
        print_labeling(outcome)
    return conclude_labeling(outcome, "labeled", _FAILED_HINT)


def _own_device(device: str, config: ExploreConfig, shard: Shard) -> str:
    """Return the device of this process; embedded backbones do not use a GPU."""
    return device if config.features.backbone in EMBEDDED else shard.own_device(device)


def _manifest(images: Path, out: Path, config: ExploreConfig, backbone: Backbone) -> Manifest:
    settings = to_plain(config)
    settings["features"] |= {
        "backbone": backbone.name,
        "weights": backbone.identity["weights"],  # their hash is in the identity; a path would tell equal weights apart
        "precision": backbone.precision,
    }
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


def _description(backbone: Backbone) -> str:
    """Name the backbone and the alternative to it."""
    embedded = backbone.name in (*EMBEDDED, BUNDLED)
    other = "--preset paper for the paper's DINO ViT-B/8" if embedded else "--backbone color-texture needs no weights"
    return f"Backbone {backbone.name} ({_WEIGHTS[backbone.identity['weights']]}); the other way: {other}."


def _default_workers(config: ExploreConfig, device: str, shard: Shard) -> int:
    share = max(1, available_cores() // shard.local_count)
    if config.features.backbone not in EMBEDDED and device != "cpu":
        import torch

        share = min(share, _GPU_WORKERS) if torch.cuda.is_available() else share  # each worker holds a model
    return share
