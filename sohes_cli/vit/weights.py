"""Weights files of ViT backbones: read without executing code, renamed to timm's keys, loaded strictly, hashed.

Accepts safetensors and PyTorch archives of plain tensors in the layouts of DINO (facebookresearch/dino: the backbone
alone, or a training checkpoint with student, teacher and projection heads), DINOv2 and DINOv3 (other names for register
tokens and layer scale) and timm. Hashes identify the weights behind a label store.
"""

from __future__ import annotations

import hashlib
import json
import re
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from sohes_cli.errors import UsageError, WeightsError, first_line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_into", "load_state_dict", "load_tensors", "state_sha256"]

_TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_FORMATS = "a .safetensors file, or a .pth, .pt or .bin file that holds plain tensors"
_CONTAINERS = ("state_dict", "model", "teacher", "student")  # the teacher is the better network of a DINO checkpoint
_PATCH_WEIGHT = "patch_embed.proj.weight"
_BACKBONE_ANCHOR = re.compile(rf"((?:module\.|backbone\.|encoder\.)*){re.escape(_PATCH_WEIGHT)}")
_PROJECTION_HEADS = ("head.mlp", "head.last_layer", "dino_head.", "ibot_head.")
_CLASSIFIERS = ("head.", "head_dist.")
_SHOWN_KEYS = 5


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the backbone's tensors from a weights file, with the formats and errors of `load_tensors`.

    Prefixes of the backbone's keys (`module.`, `backbone.`, `encoder.`) are removed, keys without them and DINO's
    projection heads dropped.
    """
    return _strip_prefix(load_tensors(path))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a weights file, on the CPU, without unpickling code.

    The usual containers are unwrapped, the teacher before the student.

    Args:
        path: a .safetensors file, or a .pth, .pt or .bin file of `torch.save`.

    Raises:
        UsageError: if the file does not exist, or has another suffix.
        WeightsError: if the file cannot be read, is damaged, holds pickled code, or holds no tensors.
    """
    if not path.is_file():
        raise UsageError(f"There is no weights file {path}.", f"Pass {_FORMATS}.")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise UsageError(f"{path} is not a weights file by its suffix {path.suffix!r}.", f"Pass {_FORMATS}.")
    try:
        loaded = load_file(path, device="cpu") if suffix == ".safetensors" else _load_pickled_tensors(path)
    except Exception as error:  # damaged archives raise errors of any type, from EOFError to UnicodeDecodeError
        raise WeightsError(
            f"The weights file {path} cannot be read ({first_line(error)}).",
            f"It must be {_FORMATS}: files that hold pickled code are refused, damaged ones need a new download.",
        ) from error
    state = _unwrap(loaded)
    if not state:
        raise WeightsError(f"The weights file {path} holds no tensors.", f"Pass {_FORMATS}.")
    return state


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a backbone's tensors into a timm ViT, strictly except for a classifier.

    Key names of DINO, DINOv2 and DINOv3 are mapped to timm's, and position embeddings interpolated to the model's grid.
    Patch embeddings of another patch size are refused: rescaled, they would run and be wrong.

    Args:
        model: a timm VisionTransformer or Eva without classifier (`num_classes=0`).
        state: tensors by name, as returned by `load_state_dict`; not modified.
        source: origin of the tensors, for messages.

    Raises:
        WeightsError: if keys are missing or unexpected, or a shape differs; lists the first five of each.
    """
    backbone = {k: v for k, v in state.items() if not k.startswith(_CLASSIFIERS)}
    wanted = model.state_dict()
    patches, kernel = backbone.get(_PATCH_WEIGHT), wanted[_PATCH_WEIGHT]
    if patches is not None and patches.ndim == 4 and patches.shape != kernel.shape:
        raise _mismatch(model, source, [("shape mismatches", [_shapes(_PATCH_WEIGHT, patches, kernel)])])
    try:
        renamed = _timm_names(model, backbone)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise _mismatch(model, source, [("failed conversions", [first_line(error)])]) from error
    differing = [(k, v) for k, v in renamed.items() if k in wanted and v.shape != wanted[k].shape]
    found = [
        ("missing keys", [k for k in wanted if k not in renamed]),
        ("unexpected keys", [k for k in renamed if k not in wanted]),
        ("shape mismatches", [_shapes(k, state.get(k, v), wanted[k]) for k, v in differing]),
    ]
    if any(keys for _, keys in found):
        raise _mismatch(model, source, found)
    model.load_state_dict(renamed)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Compute the hexadecimal SHA-256 of all names, dtypes, shapes and bytes, independent of the order of the keys."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_pickled_tensors(path: Path) -> object:
    # DINO's training checkpoints hold the run's arguments as a Namespace, which is plain data
    with torch.serialization.safe_globals([Namespace]):
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _unwrap(loaded: object) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            return {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
        loaded = inner
    return {}


def _strip_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    anchors = [match for key in state if (match := _BACKBONE_ANCHOR.fullmatch(key))]
    prefix = anchors[0].group(1) if anchors else ""
    backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in backbone.items() if not key.startswith(_PROJECTION_HEADS)}


def _timm_names(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(model, eva.Eva):
        # adapt_layer_scale renames DeiT III's gammas; the filter empties its argument, which is our copy
        return vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True)
    with redirect_stdout(StringIO()):  # timm prints an exception for each qkv bias that the model lacks
        return eva.checkpoint_filter_fn(state, model)


def _shapes(key: str, given: Tensor, wanted: Tensor) -> str:
    return f"{key} is {list(given.shape)} instead of {list(wanted.shape)}"


def _mismatch(model: nn.Module, source: str, found: list[tuple[str, list[str]]]) -> WeightsError:
    name = getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__
    parts = [
        f"{len(keys)} {kind}: {', '.join(keys[:_SHOWN_KEYS])}{', ...' if len(keys) > _SHOWN_KEYS else ''}"
        for kind, keys in found
        if keys
    ]
    return WeightsError(
        f"The weights of {source} do not fit the backbone {name}: {'; '.join(parts)}.",
        "Name the backbone that they were trained for, or pass a file for this one.",
    )
