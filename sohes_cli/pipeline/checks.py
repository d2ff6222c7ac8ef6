"""Checks of a pipeline's inputs and settings before its first stage, so that hours of training do not end in a typo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from sohes_cli.data.examples import split_photographs
from sohes_cli.errors import ConfigError, DatasetError, StoreError, UsageError, one_line, printable
from sohes_cli.explore.features import build_backbone
from sohes_cli.images.listing import list_images, require_folder
from sohes_cli.labels.manifest import images_entry, read_manifest
from sohes_cli.labels.sources import LabelSource, open_label_source
from sohes_cli.model.backbone import start_weights
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.pipeline.config import stage_named
from sohes_cli.runs.folder import differences, refuse_file
from sohes_cli.training.distribution import require_divisible
from sohes_cli.training.phases import PHASES
from sohes_cli.training.run_folder import changed_settings, read_run

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from sohes_cli.pipeline.config import PipelineConfig
    from sohes_cli.pipeline.folder import PipelineFolder

__all__ = ["GroundTruth", "check_folders", "check_same", "check_settings", "open_ground_truth"]

_SHOWN = 3
_SHOWN_SETTINGS = 5
_RESOLVED = ("backbone", "weights", "precision")  # settings of features, which a manifest holds resolved


@dataclass(frozen=True)
class GroundTruth:
    """An annotation file and the folder of its photographs."""

    source: LabelSource
    images: Path

    @property
    def names(self) -> list[str]:
        """Names of the listed photographs, relative to the folder."""
        return [str(image.file_name) for image in self.source.images]


def open_ground_truth(file: Path, images: Path) -> GroundTruth:
    """Open a COCO annotation file with annotations, at least one of whose photographs the folder holds.

    Raises:
        UsageError: if the file is of another kind, empty or damaged, or the folder holds none of its photographs.
    """
    try:
        source = open_label_source(file)
    except (DatasetError, StoreError) as error:
        raise UsageError(f"--gt: {error.message}", error.hint) from error
    if source.kind != "annotation file":
        hint = "Give a COCO annotation file; `sohes convert` and `sohes export` write one."
        raise UsageError(f"--gt {file} is a {source.kind}.", hint)
    if not source.n_annotations:
        raise UsageError(f"--gt {file} holds no annotations.", "Give the annotation file of your images.")
    require_folder(images)
    truth = GroundTruth(source, images)
    if not any(_is_below(images, name) for name in truth.names):
        shown = ", ".join(map(one_line, truth.names[:_SHOWN])) + (", ..." if len(truth.names) > _SHOWN else "")
        message = f"{printable(images)} holds none of the photographs that --gt {file} lists ({shown})."
        raise UsageError(message, "Name the folder below which they lie with --gt-images.")
    return truth


def _is_below(images: Path, name: str) -> bool:
    """Return True if the image folder holds a file of this name, for `listed_images`."""
    path = PurePosixPath(name)
    is_file = os.path.isfile(images / name)  # noqa: PTH113 (a Path's method raises where the name is too long)
    return not path.is_absolute() and ".." not in path.parts and is_file


def check_folders(images: Path, folder: PipelineFolder) -> None:
    """Check the folders of a pipeline, whose pictures must not be taken for photographs by its next call.

    Raises:
        UsageError: if there are no images, `--out` is a file or inside the image folder.
    """
    require_folder(images)
    refuse_file("--out", folder.path, "Name a folder, which need not exist.")
    if folder.path.resolve().is_relative_to(images.resolve()):
        place = f"--out {folder.path} is inside the image folder {printable(images)}"
        raise UsageError(f"{place}, where its pictures would count as photographs.", "Choose a folder outside of it.")


def check_same(config: PipelineConfig, images: Path, folder: PipelineFolder) -> None:
    """Compare the settings with those of stages that have begun, as far as they are known before a stage resolves them.

    Raises:
        UsageError: if a stage has begun with other settings.
        StoreError: if a folder is damaged or of another kind.
    """
    settings, changed = config.of_stages(), []
    if folder.has_begun("explore"):
        there = read_manifest(folder.labels)
        changed += differences({"images": there.images}, {"images": images_entry(folder.labels, images)})
        changed += differences(*({"explore": _unresolved(tree)} for tree in (there.config, settings["explore"])))
    for stage, phase in PHASES.items():
        run = read_run(folder.run(stage), phase.kind) if folder.has_begun(stage) else None
        if run is not None:
            resolved = ("optimizer.precision",) if settings[stage]["optimizer"]["precision"] == "auto" else ()
            lines = changed_settings(phase.kind, run["config"], settings[stage], *resolved)
            changed += [f"{stage}.{line}" for line in lines]
    if changed:
        raise UsageError(
            f"--out {folder.path} holds a pipeline with other settings: {', '.join(changed[:_SHOWN_SETTINGS])}.",
            "Give the same settings to continue it, another --out, or --overwrite to begin anew.",
        )


def _unresolved(config: dict[str, Any]) -> dict[str, Any]:
    """Return settings of phase 1 without those that a manifest holds resolved."""
    features = {name: value for name, value in config.get("features", {}).items() if name not in _RESOLVED}
    return {**config, "features": features}


def check_settings(
    config: PipelineConfig, images: Path, folder: PipelineFolder, accelerator: Accelerator, overwrite: bool
) -> None:
    """Check that each stage can begin: backbone and weights are found, the parts of the models fit, batches divide.

    Backbone and weights of a stage that has begun are not checked again unless `overwrite` makes it begin anew.

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
    """Refuse settings of phase 3 whose model cannot take the weights of phase 2."""
    models = config.instruct.model, config.correct.model
    before, after = ({name: v.shape for name, v in EntityModel(model).state_dict().items()} for model in models)
    if before != after:
        name = next(name for name in vars(models[0]) if getattr(models[0], name) != getattr(models[1], name))
        value = getattr(models[1], name)
        message = f"model.{name} cannot be {value!r}: phase 3 goes on with the model of phase 2."
        raise ConfigError(message, f"Set instruct.model.{name} instead.")
