"""The folder of a pretraining run: what `sohes_cli.training.run_folder` keeps there, and the backbone that comes out.

backbone.safetensors  the teacher's ViT after the newest checkpoint: what `sohes explore --backbone FOLDER` takes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.pretrain.config import PretrainConfig
from sohes_cli.settings import to_plain
from sohes_cli.training.checkpoints import checkpoint_path, prune_checkpoints
from sohes_cli.training.run_folder import RunFolder, RunKind
from sohes_cli.vit.build import IMAGENET_MEAN, IMAGENET_STD
from sohes_cli.vit.pretrained import BACKBONE_FORMAT, BACKBONE_NAME
from sohes_cli.vit.tensor_file import write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sohes_cli.pretrain.sources import ImageSource
    from sohes_cli.pretrain.training import Pretraining

__all__ = ["pretrain_run", "save_run"]

_INPUTS = {"photographs": "photographs_sha256"}
_KIND = RunKind(
    "sohes pretrain", "sohes-pretrain", _INPUTS, outputs=(BACKBONE_NAME,), defaults=to_plain(PretrainConfig())
)


def pretrain_run(path: Path, source: ImageSource, config: PretrainConfig, precision: str) -> RunFolder:
    """The folder of a run on these photographs with these settings; nothing is touched yet."""
    settings = to_plain(config)
    settings["optimizer"]["precision"] = precision
    return RunFolder(
        path, _KIND, _KIND.describe(settings, {"photographs": len(source), "photographs_sha256": source.sha256})
    )


def save_run(run: RunFolder, training: Pretraining, step: int, failed: Iterable[str] = ()) -> None:
    """Write the backbone and a checkpoint after `step` steps; the main process alone.

    The checkpoint comes second: where there is one of the last step, the backbone is that of the last step, too.

    Args:
        run: where.
        training: what is saved.
        step: steps done.
        failed: messages of photographs that could not be read.

    Raises:
        StoreError: if the disk is full or not writable; older files stay.
    """
    description = _describe_backbone(training, step) | {"photographs": run.description["photographs"]}
    write_tensors(run.path / BACKBONE_NAME, training.teacher.vit.state_dict(), description)
    training.save(checkpoint_path(run.checkpoints, step), step, failed)
    prune_checkpoints(run.checkpoints, training.config.run.keep)


def _describe_backbone(training: Pretraining, step: int) -> dict[str, Any]:
    model = training.config.model
    return {
        "format": BACKBONE_FORMAT,
        "name": model.name,
        "shape": model.shape,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "step": step,
        "steps": training.steps,
    }
