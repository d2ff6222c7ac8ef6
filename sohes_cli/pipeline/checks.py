"""What can be wrong with a pipeline, found before its first stage: hours of training must not end in a typo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sohes_cli.data.examples import split_photographs
from sohes_cli.errors import ConfigError, DatasetError, StoreError, UsageError, one_line, printable
from sohes_cli.explore.features import build_backbone
from sohes_cli.images.listing import list_images, require_folder
from sohes_cli.labels.manifest import images_entry, read_manifest
from sohes_cli.labels.sources import LabelSource, open_source
from sohes_cli.model.backbone import start_weights
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.pipeline.config import stage_named
from sohes_cli.training.distribution import require_divisible
from sohes_cli.training.phases import PHASES
from sohes_cli.training.run_folder import read_run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from accelerate import Accelerator

    from sohes_cli.pipeline.config import PipelineConfig
    from sohes_cli.pipeline.folder import PipelineFolder

__all__ = ["GroundTruth", "check_folders", "check_same", "check_settings", "open_ground_truth"]

_SHOWN = 3
_SHOWN_SETTINGS = 5
_RESOLVED = (
    "features.backbone",
    "features.weights",
    "features.precision",
)  # a manifest has what they turned out to mean


@dataclass(frozen=True)
class GroundTruth:
    """Annotated photographs.

    Args:
        source: the annotation file.
        images: the folder of its photographs.
    """

    source: LabelSource
    images: Path

    @property
    def names(self) -> list[str]:
        """The photographs that it lists, relative to the folder."""
        return [str(image.file_name) for image in self.source.images]


def open_ground_truth(file: Path, images: Path) -> GroundTruth:
    """Open an annotation file, and see that it has annotations and at least one of its photographs is there.

    Args:
        file: the COCO annotation file.
        images: the folder of its photographs.

    Raises:
        UsageError: if it cannot be what is evaluated on.
    """
    try:
        source = open_source(file)
    except (DatasetError, StoreError) as error:
        raise UsageError(f"--gt: {error.message}", error.hint) from error
    if source.kind != "annotation file":
        raise UsageError(
            f"--gt {file} is a {source.kind}.",
            "Give a COCO annotation file; `sohes convert` and `sohes export` write one.",
        )
    if not source.n_annotations:
        raise UsageError(f"--gt {file} holds no annotations.", "Give the annotation file of your images.")
    require_folder(images)
    truth = GroundTruth(source, images)
    if not any(_is_below(images, name) for name in truth.names):
        shown = ", ".join(map(one_line, truth.names[:_SHOWN])) + (", ..." if len(truth.names) > _SHOWN else "")
        raise UsageError(
            f"{printable(images)} holds none of the photographs that --gt {file} lists ({shown}).",
            "Name the folder below which they lie with --gt-images.",
        )
    return truth


def _is_below(images: Path, name: str) -> bool:
    """Whether the image folder holds a file of this name, as `listed_images` will see it."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and os.path.isfile(images / name)  # noqa: PTH113 (raises for long names)


def check_folders(images: Path, folder: PipelineFolder) -> None:
    """See that pictures which the pipeline draws are not taken for photographs the next time.

    Raises:
        UsageError: if there are no images, `--out` is a file, or it lies in the image folder.
    """
    require_folder(images)
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"--out {folder.path} is a file.", "Name a folder, which need not exist.")
    if folder.path.resolve().is_relative_to(images.resolve()):
        raise UsageError(
            f"--out {folder.path} lies in the image folder {printable(images)}, where its pictures would count as photographs.",
            "Choose a folder outside of it.",
        )


def check_same(config: PipelineConfig, images: Path, folder: PipelineFolder) -> None:
    """See that what is there was made with the same settings, as far as they can be compared before a stage resolves them.

    Args:
        config: the settings.
        images: the image folder.
        folder: the pipeline's.

    Raises:
        UsageError: if a stage has begun with other settings.
        StoreError: if what is there is damaged or of another kind.
    """
    settings, changed = config.of_stages(), []
    if folder.has_begun("explore"):
        there = read_manifest(folder.labels)
        entry = images_entry(folder.labels, images)
        changed += [f"images ({there.images} there, {entry} now)"] if there.images != entry else []
        changed += _differences(there.config, settings["explore"], "explore", _RESOLVED)
    for stage, phase in PHASES.items():
        run = read_run(folder.run(stage), phase.kind) if folder.has_begun(stage) else None
        if run is not None:
            resolved = ("optimizer.precision",) if settings[stage]["optimizer"]["precision"] == "auto" else ()
            changed += _differences(run["config"], settings[stage], stage, (*phase.kind.free, *resolved))
    if changed:
        raise UsageError(
            f"--out {folder.path} holds a pipeline with other settings: {', '.join(changed[:_SHOWN_SETTINGS])}.",
            "Give the same settings to continue it, another --out, or --overwrite to begin anew.",
        )


def check_settings(
    config: PipelineConfig, images: Path, folder: PipelineFolder, accelerator: Accelerator, overwrite: bool
) -> None:
    """See that each stage can begin with its settings: backbone and weights are there, and the parts of the model fit together.

    What a stage has begun with is not checked again.

    Args:
        config: the settings.
        images: the image folder.
        folder: the pipeline's.
        accelerator: the process group, which shares a step.
        overwrite: whether all stages begin anew.

    Raises:
        SohesError: if a stage could not begin; a UsageError if a setting is wrong.
    """
    count = len(list_images(images).names)
    if overwrite or not folder.has_begun("explore"):
        with stage_named("explore"):
            build_backbone(config.explore.features, "cpu")
    if overwrite or not folder.has_begun("instruct"):
        with stage_named("instruct"):
            start_weights(EntityModel(config.instruct.model).backbone, config.instruct.model)
    if config.correct.model != config.instruct.model:
        with stage_named("correct"):
            _require_same_model(config)
    for stage, settings in (("instruct", config.instruct), ("correct", config.correct)):
        with stage_named(stage):
            split_photographs(count, settings.data.validation_of(count), settings.run.seed)
            require_divisible(settings.optimizer.batch_size, accelerator)


def _require_same_model(config: PipelineConfig) -> None:
    """Refuse settings of phase 3 with which its model could not be filled with that of phase 2."""
    before, after = (
        {k: v.shape for k, v in EntityModel(c.model).state_dict().items()} for c in (config.instruct, config.correct)
    )
    if before != after:
        names = [
            name for name, value in vars(config.correct.model).items() if value != getattr(config.instruct.model, name)
        ]
        raise ConfigError(
            f"model.{names[0]} cannot be {getattr(config.correct.model, names[0])!r}: phase 3 goes on with the model of phase 2.",
            f"Set instruct.model.{names[0]} instead.",
        )


def _differences(there: Mapping[str, Any], now: Mapping[str, Any], stage: str, free: tuple[str, ...]) -> list[str]:
    """The settings of a stage, but for free ones, that differ, each with both values."""
    before, wanted = (
        {f"{group}.{name}": v for group, values in c.items() for name, v in values.items()} for c in (there, now)
    )
    changed = [name for name in wanted if name not in free and before.get(name) != wanted[name]]
    return [f"{stage}.{name} ({before.get(name)} there, {wanted[name]} now)" for name in changed]
