"""The folder of a pretraining run: the files of `sohes_cli.training.run_folder`, and the backbone.

backbone.safetensors  ViT of the teacher after the newest checkpoint, for `sohes explore --backbone FOLDER`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

_KIND = RunKind(
    "sohes pretrain",
    "sohes-pretrain",
    {"photographs": "photographs_sha256"},
    outputs=(BACKBONE_NAME,),
    defaults=to_plain(PretrainConfig()),
)


def pretrain_run(path: Path, source: ImageSource, config: PretrainConfig, precision: str) -> RunFolder:
    """Describe the folder of a run on these photographs with these settings, without touching it."""
    settings = to_plain(config)
    settings["optimizer"]["precision"] = precision
    inputs = {"photographs": len(source), "photographs_sha256": source.sha256}
    return RunFolder(path, _KIND, _KIND.describe(settings, inputs))


def save_run(run: RunFolder, training: Pretraining, step: int, failed: Iterable[str] = ()) -> None:
    """Write the backbone and a checkpoint after `step` steps; the main process alone.

    The checkpoint comes second: a folder with the checkpoint of the last step holds the backbone of the last step, too.
    It keeps the messages of photographs that `failed`.

    Raises:
        StoreError: if the disk is full or not writable; older files stay.
    """
    model = training.config.model
    description = {
        "format": BACKBONE_FORMAT,
        "name": model.name,
        "shape": model.shape,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "step": step,
        "steps": training.steps,
        "photographs": run.description["photographs"],
    }
    write_tensors(run.path / BACKBONE_NAME, training.teacher.vit.state_dict(), description)
    training.save(checkpoint_path(run.checkpoints, step), step, failed)
    prune_checkpoints(run.checkpoints, training.config.run.keep)
