"""Published checkpoints of the same parts: Mask2Former's decoders and ViT-Adapter's backbone, under their own names -> our model.

    sem_seg_head.pixel_decoder.*            -> pixel_decoder.*
    sem_seg_head.predictor.*                -> query_decoder.*   (static_query, an old name, -> query_feat)
    backbone.{spm, interactions, up, ...}.* -> backbone.*
    backbone.{blocks, patch_embed, ...}.*   -> backbone.vit.*

What the model has and the file lacks stays as it is: the ancestor head always, the classes if they are others than entity and no object.

Source: the code of Mask2Former (Cheng et al. 2022) and of ViT-Adapter (Chen et al. 2023).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from timm.layers.pos_embed import resample_abs_pos_embed

from sohes_cli.errors import WeightsError
from sohes_cli.explore.weights import load_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["PublicReport", "from_public", "load_public"]

_RENAMED = (
    (r"(?:module\.|model\.|student\.)+", ""),
    (r"sem_seg_head\.predictor\.static_query\.", "query_decoder.query_feat."),
    (r"sem_seg_head\.predictor\.", "query_decoder."),
    (r"sem_seg_head\.pixel_decoder\.", "pixel_decoder."),
    (r"backbone\.(?=(?:blocks|patch_embed)\.|(?:pos_embed|cls_token|reg_token)$)", "backbone.vit."),
)
_POSITIONS = "backbone.vit.pos_embed"
_SHOWN = 4


@dataclass(frozen=True)
class PublicReport:
    """What became of a public checkpoint.

    Args:
        loaded: names of the model's tensors that were filled.
        missing: names of those that the file lacks.
        left_over: names, in our terms, of the file's tensors that have no place or another shape.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


def from_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under the names of our model; names that are not known stay.

    Args:
        state: tensors by published name, with or without the prefixes of a wrapper.
    """
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(f"^{pattern}", replacement, name)
        renamed[name] = tensor
    return renamed


def load_public(model: EntityModel, path: Path) -> PublicReport:
    """Fill what a published checkpoint has of a model.

    Args:
        model: filled in place.
        path: a .safetensors file, or a .pth, .pt or .bin file of plain tensors; code is never unpickled.

    Raises:
        UsageError: if there is no such file.
        WeightsError: if it cannot be read, or nothing in it fits.
    """
    found = from_public(load_tensors(path))
    own = model.state_dict()
    if _POSITIONS in found:
        found[_POSITIONS] = _positions(model, found[_POSITIONS])
    fitting = {name: tensor.to(own[name].dtype) for name, tensor in found.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        shown = ", ".join(list(found)[:_SHOWN])
        raise WeightsError(
            f"{path} holds nothing of this model; its tensors are {shown}, ...",
            "Give a run of sohes train, or a checkpoint of Mask2Former or ViT-Adapter of the same sizes.",
        )
    model.load_state_dict(fitting, strict=False)
    missing = tuple(name for name in own if name not in fitting)
    return PublicReport(tuple(fitting), missing, tuple(name for name in found if name not in fitting))


def _positions(model: EntityModel, positions: Tensor) -> Tensor:
    """Position embeddings [1, 1 + n, C] interpolated to the grid of the model's ViT."""
    grid, side = list(model.backbone.vit.patch_embed.grid_size), round((positions.shape[1] - 1) ** 0.5)
    if side * side + 1 != positions.shape[1] or positions.shape[2] != model.backbone.channels:
        return positions
    resampled: Tensor = resample_abs_pos_embed(positions, grid, [side, side], num_prefix_tokens=1)
    return resampled
