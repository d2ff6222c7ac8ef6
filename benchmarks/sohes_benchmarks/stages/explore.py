"""`sohes explore` on the sample photographs: time an image by step, beside a pool of Felzenszwalb segmentations of the
same files.

Checked first: two runs give the same record, every mask has pixels, and no part is larger than its whole. A ViT has
random weights here, whose time is that of any weights.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_benchmarks.rows import Case
from sohes_benchmarks.stages.felzenszwalb import felzenszwalb_pool
from sohes_benchmarks.workload import Benchmark, Provider, Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from sohes_benchmarks.workload import Plan
    from sohes_cli.structures import LabelRecord

__all__ = ["BENCHMARK", "SETTINGS", "StageClock", "exploration"]

_PATCHES = ["units.kind=patches", "merging.affinities=features"]
_VIT = ["features.backbone=vit_small_patch16_224.dino", "features.weights=random"]
SETTINGS = {
    "color-texture": ["features.backbone=color-texture"],
    "color-texture, patches": ["features.backbone=color-texture", *_PATCHES],
    "ViT-S/16": _VIT,
    "ViT-S/16, patches (the paper's steps)": [*_VIT, *_PATCHES, "reclustering.enabled=true"],
}
"""Settings of `sohes explore` by case."""
_QUICK = ("color-texture",)
_WORKING_SIZE = 480
_PHOTOGRAPHS, _QUICK_PHOTOGRAPHS = ("astronaut.jpg", "chelsea.jpg"), ("chelsea.jpg",)


class StageClock:
    """Seconds by step of each photograph that was explored, the first run of each left out."""

    def __init__(self) -> None:
        self._runs: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, seconds: dict[str, float]) -> None:
        """Add one run of a photograph."""
        self._runs.setdefault(name, []).append(seconds)

    def medians_ms(self) -> dict[str, float]:
        """Milliseconds per image by step: mean over the photographs of the median over their runs."""
        photographs = [runs[1:] or runs for runs in self._runs.values()]
        steps = list(dict.fromkeys(step for runs in photographs for seconds in runs for step in seconds))
        return {
            step: 1000
            * statistics.mean(statistics.median(seconds.get(step, 0.0) for seconds in runs) for runs in photographs)
            for step in steps
        }


def exploration(
    settings: list[str], paths: list[Path], working_size: int, clock: StageClock
) -> Callable[[], list[LabelRecord]]:
    """A call that explores photographs, with the backbone built beforehand.

    Args:
        settings: assignments as for `sohes explore --set`.
        paths: the photographs.
        working_size: longer side in pixels at which units are found.
        clock: where the seconds of each step go.
    """
    from sohes_cli.explore.config import explore_config
    from sohes_cli.explore.features import build_backbone
    from sohes_cli.explore.pipeline import explore_photograph
    from sohes_cli.images.reading import read_photograph
    from sohes_cli.runs.step_times import StepTimes

    config = explore_config(assignments=[*settings, f"units.working_size={working_size}"])
    backbone = build_backbone(config.features, "cpu")

    def explore() -> list[LabelRecord]:
        records = []
        for path in paths:
            times = StepTimes()
            with times.step("reading"):
                photo = read_photograph(path, path.name, working_size)
            records.append(explore_photograph(photo, backbone, config, times))
            clock.add(path.name, times.seconds)
        return records

    return explore


def _cases(plan: Plan) -> list[Case]:
    shapes = {"photographs": (len(_photographs(plan)),), "working_size": (_WORKING_SIZE,)}
    return [Case("explore", name, "stage", "uint8", shapes) for name in (_QUICK if plan.quick else SETTINGS)]


def _photographs(plan: Plan) -> tuple[str, ...]:
    """Names of the samples that are explored."""
    return _QUICK_PHOTOGRAPHS if plan.quick else _PHOTOGRAPHS


def _workload(case: Case, plan: Plan) -> Workload:
    from sohes_cli.samples import write_samples

    folder = tempfile.TemporaryDirectory()
    write_samples(Path(folder.name))
    (working_size,) = case.shapes["working_size"]
    paths = [Path(folder.name) / name for name in _photographs(plan)]
    clock = StageClock()
    explore = exploration(SETTINGS[case.name], paths, working_size, clock)
    providers = (
        Provider(
            "felzenszwalb", lambda: lambda: [felzenszwalb_pool(path) for path in paths], items=len(paths), evidence=list
        ),
        Provider(
            "sohes", lambda: explore, items=len(paths), evidence=lambda: [explore(), explore()], steps=clock.medians_ms
        ),
    )
    return Workload(case, providers, lambda runs, _: _difference(runs), close=folder.cleanup)


def _difference(runs: list[list[LabelRecord]]) -> str:
    """Describe differences between the records of two runs; empty for the peer, which has none."""
    if runs and runs[0] != runs[1]:
        return "a second run gives other labels"
    for record in runs[0] if runs else []:
        areas = {annotation.id: annotation.area for annotation in record.annotations}
        if not areas or min(areas.values()) < 1:
            return f"{record.file_name} has no masks, or one without pixels"
        if any(a.parent is not None and a.area > areas[a.parent] for a in record.annotations):
            return f"{record.file_name} has a part that is larger than its whole"
    return ""


BENCHMARK = Benchmark("explore", _cases, _workload)
