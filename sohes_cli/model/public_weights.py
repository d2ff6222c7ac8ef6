"""Published checkpoints -> our model: Mask2Former's decoders and ViT-Adapter's backbone, under our names.

    Mask2Former   sem_seg_head.{pixel_decoder,predictor}.*                -> pixel_decoder.*, query_decoder.*
    transformers  pixel_level_module.decoder.*, transformer_module.*      -> the same
    OpenMMLab     {decode,panoptic}_head.{pixel,transformer}_decoder.*    -> the same
    ViT-Adapter   backbone.{spm,interactions,up}.*, backbone.blocks.*     -> backbone.*, backbone.vit.*

Tensors that the file lacks stay unchanged: the ancestor head always, the classes unless they are entity and no object.

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
    """Result of loading a public checkpoint.

    Args:
        loaded: names of the model's tensors that were loaded.
        missing: names of the model's tensors that the file lacks.
        unexpected: published names of the file's tensors without a counterpart of the same shape.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class _Section(NamedTuple):
    """Renaming of tensors: of `prefix` by `replacement`, of the rest by the first of `patterns` that matches."""

    prefix: str
    replacement: str
    patterns: tuple[tuple[str, str], ...] = ()


_ENCODER, _CROSS, _SELF, _FFN = (
    "transformer.encoder.layers",
    "transformer_cross_attention_layers",
    "transformer_self_attention_layers",
    "transformer_ffn_layers",
)
_SECTIONS = (
    _Section(r"(?:sem_seg_head\.)?pixel_decoder\.", "pixel_decoder."),
    _Section(r"(?:sem_seg_head\.)?predictor\.", "query_decoder.", ((r"static_query\.", "query_feat."),)),
    _Section(r"sem_seg_head\.", "pixel_decoder."),  # first version of Mask2Former
    _Section(r"(query_decoder|ancestor_head|backbone\.vit)\.", r"\1."),  # already ours
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
            (r"decoder\.layers\.(\d+)\.fc([12])\.", rf"{_FFN}.\1.linear\2."),
            (r"decoder\.layers\.(\d+)\.final_layer_norm\.", rf"{_FFN}.\1.norm."),
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
            (r"transformer_decoder\.layers\.(\d+)\.norms\.2\.", rf"{_FFN}.\1.norm."),
            (r"transformer_decoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.0\.0\.", rf"{_FFN}.\1.linear1."),
            (r"transformer_decoder\.layers\.(\d+)\.(?:ffns\.0|ffn)\.layers\.1\.", rf"{_FFN}.\1.linear2."),
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
_VIT_MARK = (
    "backbone.blocks.0.attn.qkv.weight"  # Swin has a patch_embed and norms of other meanings, but no such blocks
)
_WRAPPERS = re.compile(r"^(?:module\.|model\.|student\.)+")
_QKV = re.compile(r"[qkv]_proj\.(weight|bias)$")
_POS_EMBED = "backbone.vit.pos_embed"
_SHOWN = 4


def from_public(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published checkpoint, with or without wrapper prefixes, to ours; drop unknown ones."""
    return _merge_qkv({own: state[name] for name, own in _own_names(state).items()})


def load_public(model: EntityModel, path: Path) -> PublicReport:
    """Load a published checkpoint into a model, in place, as far as names and shapes match.

    Args:
        model: filled in place.
        path: a .safetensors file, or a .pth, .pt or .bin file of plain tensors; code is never unpickled.

    Raises:
        UsageError: if the file does not exist.
        WeightsError: if it cannot be read, or no tensor matches.
    """
    if path.suffix == ".pkl":
        raise WeightsError(
            f"{path} is a pickle of detectron2, which can run any code when it is opened.",
            "Where you trust it, convert it in Python: state = pickle.load(open('X.pkl', 'rb'))['model']; "
            "torch.save({name: torch.as_tensor(value) for name, value in state.items()}, 'X.pth'). Then give X.pth.",
        )
    state = load_tensors(path)
    own, found = model.state_dict(), from_public(state)
    if _POS_EMBED in found:
        found[_POS_EMBED] = _interpolate(model, found[_POS_EMBED])
    loaded = {k: v.to(own[k].dtype) for k, v in found.items() if k in own and v.shape == own[k].shape}
    if not loaded:
        raise WeightsError(
            f"{path} has no tensor of this model; its tensors are {', '.join(list(state)[:_SHOWN])}, ...",
            "Give a run of sohes train, or a checkpoint of Mask2Former or ViT-Adapter of the same sizes.",
        )
    model.load_state_dict(loaded, strict=False)
    names = _own_names(state)
    unexpected = tuple(name for name in state if _QKV.sub(r"in_proj_\1", names.get(name, "")) not in loaded)
    return PublicReport(tuple(loaded), tuple(name for name in own if name not in loaded), unexpected)


def _own_names(names: Iterable[str]) -> dict[str, str]:
    """Map published names to ours, without unknown ones."""
    plain = {name: _WRAPPERS.sub("", name) for name in names}
    sections = (*_SECTIONS, _VIT) if _VIT_MARK in plain.values() else _SECTIONS
    found = {}
    for name, rest in plain.items():
        for section in sections:
            match = re.match(section.prefix, rest)
            if match is not None:
                found[name] = match.expand(section.replacement) + _renamed(rest[match.end() :], section.patterns)
                break
    return found


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _merge_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the projections of queries, keys and values of each attention, as in PyTorch's layer."""
    merged = {}
    for name, tensor in state.items():
        kind = _QKV.search(name)
        if kind is None:
            merged[name] = tensor
            continue
        prefix = name[: kind.start()]
        parts = [state.get(f"{prefix}{letter}_proj.{kind[1]}") for letter in "qkv"]
        merged[f"{prefix}in_proj_{kind[1]}"] = torch.cat([part for part in parts if part is not None])
    return merged


def _interpolate(model: EntityModel, pos_embed: Tensor) -> Tensor:
    """Interpolate position embeddings [1, n, C] or [1, prefix + n, C] to the grid of the model's ViT.

    Embeddings of prefix tokens that the file lacks are the model's own; those of no square grid are returned unchanged.
    """
    vit = model.backbone.vit
    num_prefix = vit.pos_embed.shape[1] - vit.patch_embed.num_patches
    side = int(pos_embed.shape[1] ** 0.5) if pos_embed.ndim == 3 else 0
    found_prefix = pos_embed.shape[1] - side * side
    if side == 0 or found_prefix not in (0, 1, num_prefix) or pos_embed.shape[2] != model.backbone.channels:
        return pos_embed
    prefix, grid = pos_embed[:, :found_prefix], pos_embed[:, found_prefix:]
    if found_prefix != num_prefix:
        prefix = vit.pos_embed.detach()[:, :num_prefix]
    resampled: Tensor = resample_abs_pos_embed(grid, list(vit.patch_embed.grid_size), [side, side], num_prefix_tokens=0)
    return torch.cat([prefix, resampled.to(prefix.dtype)], 1)
