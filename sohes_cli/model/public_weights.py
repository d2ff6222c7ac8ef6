"""Published checkpoints of the same parts -> our model: Mask2Former's decoders and ViT-Adapter's backbone, under their own names.

    Mask2Former         sem_seg_head.{pixel_decoder,predictor}.*                        -> pixel_decoder.*, query_decoder.*
    transformers        pixel_level_module.decoder.*, transformer_module.*              -> the same
    OpenMMLab           {decode_head,panoptic_head}.{pixel_decoder,transformer_decoder,...}.* -> the same
    ViT-Adapter         backbone.{spm,interactions,up,...}.*, backbone.{blocks,...}.*   -> backbone.*, backbone.vit.*

What the model has and the file lacks stays as it is: the ancestor head always, the classes if they are others than entity and no object.

Source: the code of Mask2Former (Cheng et al. 2022) and of ViT-Adapter (Chen et al. 2023).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from sohes_cli.errors import WeightsError
from sohes_cli.vit.weights import load_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["PublicReport", "from_public", "load_public"]


@dataclass(frozen=True)
class PublicReport:
    """What became of a public checkpoint.

    Args:
        loaded: names of the model's tensors that were filled.
        missing: names of those that the file lacks.
        left_over: names, in the file's terms, of its tensors that have no place or another shape.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


class _Section(NamedTuple):
    """Names that begin alike: what replaces their beginning, and patterns of which the first that fits changes the rest."""

    begins: str
    replacement: str
    renamed: tuple[tuple[str, str], ...] = ()


_ENCODER, _CROSS, _SELF, _MLP = (
    "transformer.encoder.layers",
    "transformer_cross_attention_layers",
    "transformer_self_attention_layers",
    "transformer_ffn_layers",
)
_SECTIONS = (
    _Section(r"(?:sem_seg_head\.)?pixel_decoder\.", "pixel_decoder."),
    _Section(r"(?:sem_seg_head\.)?predictor\.", "query_decoder.", ((r"static_query\.", "query_feat."),)),
    _Section(r"sem_seg_head\.", "pixel_decoder."),  # of the first version
    _Section(r"(query_decoder|ancestor_head|backbone\.vit)\.", r"\1."),  # our own
    _Section(
        r"pixel_level_module\.decoder\.",
        "pixel_decoder.",
        (
            (r"input_projections\.", "input_proj."),
            (r"level_embed$", "transformer.level_embed"),
            (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", rf"{_ENCODER}.\1.norm1."),
            (r"encoder\.layers\.(\d+)\.final_layer_norm\.", rf"{_ENCODER}.\1.norm2."),
            (r"encoder\.layers\.(\d+)\.fc([12])\.", rf"{_ENCODER}.\1.linear\2."),
            (r"encoder\.", "transformer.encoder."),
            (r"mask_projection\.", "mask_features."),
            (r"(adapter_1|layer_1)\.0\.", r"\1."),
            (r"(adapter_1|layer_1)\.1\.", r"\1.norm."),
        ),
    ),
    _Section(
        r"transformer_module\.",
        "query_decoder.",
        (
            (r"queries_embedder\.", "query_embed."),
            (r"queries_features\.", "query_feat."),
            (r"decoder\.layernorm\.", "decoder_norm."),
            (r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"mask_embed.layers.\1."),
            (r"decoder\.layers\.(\d+)\.cross_attn\.", rf"{_CROSS}.\1.multihead_attn."),
            (r"decoder\.layers\.(\d+)\.cross_attn_layer_norm\.", rf"{_CROSS}.\1.norm."),
            (r"decoder\.layers\.(\d+)\.self_attn\.", rf"{_SELF}.\1.self_attn."),
            (r"decoder\.layers\.(\d+)\.self_attn_layer_norm\.", rf"{_SELF}.\1.norm."),
            (r"decoder\.layers\.(\d+)\.fc([12])\.", rf"{_MLP}.\1.linear\2."),
            (r"decoder\.layers\.(\d+)\.final_layer_norm\.", rf"{_MLP}.\1.norm."),
        ),
    ),
    _Section(r"class_predictor\.", "query_decoder.class_embed."),
    _Section(
        r"(?:decode_head|panoptic_head)\.pixel_decoder\.",
        "pixel_decoder.",
        (
            (r"input_convs\.(\d)\.conv\.", r"input_proj.\1.0."),
            (r"input_convs\.(\d)\.gn\.", r"input_proj.\1.1."),
            (r"level_encoding\.weight", "transformer.level_embed"),
            (r"encoder\.layers\.(\d+)\.(?:attentions\.0|self_attn)\.", rf"{_ENCODER}.\1.self_attn."),
            (r"encoder\.layers\.(\d+)\.norms\.0\.", rf"{_ENCODER}.\1.norm1."),
            (r"encoder\.layers\.(\d+)\.norms\.1\.", rf"{_ENCODER}.\1.norm2."),
            (r"encoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.0\.0\.", rf"{_ENCODER}.\1.linear1."),
            (r"encoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.1\.", rf"{_ENCODER}.\1.linear2."),
            (r"lateral_convs\.0\.conv\.", "adapter_1."),
            (r"lateral_convs\.0\.gn\.", "adapter_1.norm."),
            (r"output_convs\.0\.conv\.", "layer_1."),
            (r"output_convs\.0\.gn\.", "layer_1.norm."),
            (r"mask_feature\.", "mask_features."),
        ),
    ),
    _Section(
        r"(?:decode_head|panoptic_head)\.",
        "query_decoder.",
        (
            (r"transformer_decoder\.post_norm\.", "decoder_norm."),
            (
                r"transformer_decoder\.layers\.(\d+)\.(?:attentions\.0|cross_attn)\.attn\.",
                rf"{_CROSS}.\1.multihead_attn.",
            ),
            (r"transformer_decoder\.layers\.(\d+)\.(?:attentions\.1|self_attn)\.attn\.", rf"{_SELF}.\1.self_attn."),
            (r"transformer_decoder\.layers\.(\d+)\.norms\.0\.", rf"{_CROSS}.\1.norm."),
            (r"transformer_decoder\.layers\.(\d+)\.norms\.1\.", rf"{_SELF}.\1.norm."),
            (r"transformer_decoder\.layers\.(\d+)\.norms\.2\.", rf"{_MLP}.\1.norm."),
            (r"transformer_decoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.0\.0\.", rf"{_MLP}.\1.linear1."),
            (r"transformer_decoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.1\.", rf"{_MLP}.\1.linear2."),
            (r"cls_embed\.", "class_embed."),
            (r"mask_embed\.0\.", "mask_embed.layers.0."),
            (r"mask_embed\.2\.", "mask_embed.layers.1."),
            (r"mask_embed\.4\.", "mask_embed.layers.2."),
        ),
    ),
)
_VIT = _Section(
    r"backbone\.",
    "backbone.",
    (
        (r"blocks\.(\d+)\.gamma([12])$", r"vit.blocks.\1.ls\2.gamma"),
        (r"(?=blocks\.|patch_embed\.|pos_embed$|cls_token$|reg_token$)", "vit."),
    ),
)
_VIT_MARK = "backbone.blocks.0.attn.qkv.weight"  # Swin's backbones have a patch_embed and norms of other meanings
_WRAPPERS = re.compile(r"^(?:module\.|model\.|student\.)+")
_POSITIONS = "backbone.vit.pos_embed"
_SHOWN = 4


def from_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under the names of our model; those that no part of it has are left out.

    Args:
        state: tensors by published name, with or without the prefixes of wrappers.
    """
    return _joined({own: state[name] for name, own in _own_names(state).items()})


def load_public(model: EntityModel, path: Path) -> PublicReport:
    """Fill what a published checkpoint has of a model.

    Args:
        model: filled in place.
        path: a .safetensors file, or a .pth, .pt or .bin file of plain tensors; code is never unpickled.

    Raises:
        UsageError: if there is no such file.
        WeightsError: if it cannot be read, or nothing in it fits.
    """
    if path.suffix == ".pkl":
        raise WeightsError(
            f"{path} is a pickle of detectron2, which can run any code when it is opened.",
            "Where you trust it, convert it in Python: state = pickle.load(open('X.pkl', 'rb'))['model']; "
            "torch.save({name: torch.as_tensor(value) for name, value in state.items()}, 'X.pth'). Then give X.pth.",
        )
    state = load_tensors(path)
    own, found = model.state_dict(), from_public(state)
    if _POSITIONS in found:
        found[_POSITIONS] = _positions(model, found[_POSITIONS])
    fitting = {
        name: tensor.to(own[name].dtype)
        for name, tensor in found.items()
        if name in own and tensor.shape == own[name].shape
    }
    if not fitting:
        raise WeightsError(
            f"{path} holds nothing of this model; its tensors are {', '.join(list(state)[:_SHOWN])}, ...",
            "Give a run of sohes train, or a checkpoint of Mask2Former or ViT-Adapter of the same sizes.",
        )
    model.load_state_dict(fitting, strict=False)
    names = _own_names(state)
    left_over = tuple(name for name in state if _JOINED.sub(r"in_proj_\1", names.get(name, "")) not in fitting)
    return PublicReport(tuple(fitting), tuple(name for name in own if name not in fitting), left_over)


def _own_names(names: Iterable[str]) -> dict[str, str]:
    """Our name of each published one that has a place."""
    plain = {name: _WRAPPERS.sub("", name) for name in names}
    sections = (*_SECTIONS, _VIT) if _VIT_MARK in plain.values() else _SECTIONS
    found = {}
    for name, rest in plain.items():
        section = next((section for section in sections if re.match(section.begins, rest)), None)
        if section is not None:
            found[name] = _renamed(rest, section)
    return found


def _renamed(name: str, section: _Section) -> str:
    match = re.match(section.begins, name)
    if match is None:
        return name
    begin, rest = match.expand(section.replacement), name[match.end() :]
    for pattern, replacement in section.renamed:
        rest, times = re.subn(f"^{pattern}", replacement, rest)
        if times:
            break
    return begin + rest


_JOINED = re.compile(r"[qkv]_proj\.(weight|bias)$")


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projections of queries, keys and values of an attention in one tensor, as PyTorch's layer has them."""
    found = {}
    for name, tensor in state.items():
        kind = _JOINED.search(name)
        if kind is None:
            found[name] = tensor
            continue
        begin = name[: kind.start()]
        parts = [state.get(f"{begin}{letter}_proj.{kind[1]}") for letter in "qkv"]
        found[f"{begin}in_proj_{kind[1]}"] = torch.cat([part for part in parts if part is not None])
    return found


def _positions(model: EntityModel, positions: Tensor) -> Tensor:
    """Position embeddings [1, n, C] or [1, prefix + n, C], interpolated to the grid of the model's ViT.

    The model's own prefix tokens stay where the file has none for them; embeddings of no square grid are given back as they are.
    """
    vit = model.backbone.vit
    n_prefix = vit.pos_embed.shape[1] - vit.patch_embed.num_patches
    side = int(positions.shape[1] ** 0.5) if positions.ndim == 3 else 0
    before = positions.shape[1] - side * side
    if side == 0 or before not in (0, 1, n_prefix) or positions.shape[2] != model.backbone.channels:
        return positions
    prefix, grid = positions[:, :before], positions[:, before:]
    if before != n_prefix:
        prefix = vit.pos_embed.detach()[:, :n_prefix]
    resampled: Tensor = resample_abs_pos_embed(grid, list(vit.patch_embed.grid_size), [side, side], num_prefix_tokens=0)
    return torch.cat([prefix, resampled.to(prefix.dtype)], 1)
