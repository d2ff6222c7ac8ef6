"""Weights files of ViT backbones: read without running any code, renamed to timm's keys, loaded strictly, hashed.

From a file (safetensors, or a PyTorch archive of plain tensors) or a state dict to the parameters of a timm ViT. The layouts are those
in which the backbones of the paper are published: DINO (facebookresearch/dino: a flat backbone, or the full training checkpoint with
its student, teacher and projection heads), DINOv2 and DINOv3 (their own names for register tokens and layer scale), and timm's own.
Hashes give a label store the identity of the weights that made it.
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
    """Read the backbone's tensors from a weights file: those of `load_tensors` without prefixes and heads.

    The prefixes `module.`, `backbone.` and `encoder.` of the backbone's keys are removed together with all keys outside that prefix, and
    DINO's projection heads are dropped.

    Args:
        path: see `load_tensors`, which also says what is raised.
    """
    return _strip_prefix(load_tensors(path))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a weights file under their own names, on the CPU, without ever unpickling code.

    The usual containers are opened; of teacher and student, the teacher.

    Args:
        path: a .safetensors file, or a .pth, .pt or .bin file made by `torch.save`.

    Raises:
        UsageError: if there is no such file, or its suffix names another format.
        WeightsError: if the file cannot be read, is damaged, holds pickled code, or holds no tensors.
    """
    if not path.is_file():
        raise UsageError(f"There is no weights file {path}.", f"Pass {_FORMATS}.")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise UsageError(f"{path} is not a weights file by its suffix {path.suffix!r}.", f"Pass {_FORMATS}.")
    try:
        loaded = load_file(path, device="cpu") if suffix == ".safetensors" else _load_pickled_tensors(path)
    except Exception as error:  # a damaged archive can raise anything, from EOFError to UnicodeDecodeError
        raise WeightsError(
            f"The weights file {path} cannot be read ({first_line(error)}).",
            f"It must be {_FORMATS}: files that hold pickled code are refused, damaged ones need a new download.",
        ) from error
    state = _unwrap(loaded)
    if not state:
        raise WeightsError(f"The weights file {path} holds no tensors.", f"Pass {_FORMATS}.")
    return state


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a backbone's tensors into a timm ViT, strictly: every parameter is found and nothing but a classifier is left over.

    Key names of DINO, DINOv2 and DINOv3 are mapped to timm's; position embeddings of another grid are interpolated. Patch
    embeddings of another patch size are refused, because rescaled ones give a model that runs and is wrong.

    Args:
        model: a timm VisionTransformer or Eva without classifier (`num_classes=0`).
        state: tensors by name, as `load_state_dict` returns them; left as it is.
        source: where they came from, for the error message.

    Raises:
        WeightsError: if keys are missing or unexpected, or a shape differs; it lists the first five of each.
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
    found = [
        ("missing keys", [k for k in wanted if k not in renamed]),
        ("unexpected keys", [k for k in renamed if k not in wanted]),
        (
            "shape mismatches",
            [_shapes(k, state.get(k, v), wanted[k]) for k, v in renamed.items() if _differs(v, wanted.get(k))],
        ),
    ]
    if any(keys for _, keys in found):
        raise _mismatch(model, source, found)
    model.load_state_dict(renamed)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in hexadecimal; the order of the keys does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_pickled_tensors(path: Path) -> object:
    # DINO's full checkpoints carry the run's arguments as a Namespace, which holds data only
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
        # adapt_layer_scale renames DeiT III's gammas; the filter empties the dict it is given, which is our copy
        return vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True)
    with redirect_stdout(StringIO()):  # timm prints an exception for each qkv bias that the model does not have
        return eva.checkpoint_filter_fn(state, model)


def _differs(given: Tensor, wanted: Tensor | None) -> bool:
    return wanted is not None and given.shape != wanted.shape


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
