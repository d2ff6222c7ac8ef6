"""ViTs of timm with weights of the Hugging Face hub, of a local file, or random.

Source: backbones as in Cao et al. 2024 (DINO ViT-B/8) and their successors (DINOv2, DINOv3, EVA-02), through timm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.layers.patch_embed import PatchEmbed
from timm.models import is_model_in_modules, is_model_pretrained
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer

from sohes_cli.errors import SohesError, UsageError, WeightsError, first_line
from sohes_cli.runs.files import file_sha256
from sohes_cli.vit.build import use_fused_attention
from sohes_cli.vit.timm_names import VIT_MODULES, unknown_backbone
from sohes_cli.vit.weights import load_into, load_state_dict, state_sha256

__all__ = ["check_name", "published_vit"]

_HUB_TIMEOUT_S = 5.0
_OTHER_WAYS = "Pass --weights FILE, or use the embedded --backbone color-texture, which needs none."


def published_vit(name: str, weights: Path | Literal["random"] | None = None) -> tuple[Any, str, str]:
    """Build a ViT of timm and fill in its weights.

    Args:
        name: timm name, with or without tag.
        weights: a local file, `random`, or None for timm's pretrained weights from the hub or its cache.

    Returns:
        The model without classifier, for images of any size; the origin of its weights (`file`, `random`, `hub`); and
        their SHA-256, of the file or else of the tensors.

    Raises:
        UsageError: if timm has no such model, it is not a plain ViT, or the file does not exist.
        WeightsError: if the weights are unavailable, unreadable or those of another model.
    """
    check_name(name)
    if isinstance(weights, Path):
        state = load_state_dict(weights)  # first: a bad file fails before the model is built
        model = _create(name, pretrained=False)
        load_into(model, state, str(weights))
        return model, "file", file_sha256(weights)
    model = _create_pretrained(name) if weights is None else _create(name, pretrained=False)
    return model, "hub" if weights is None else "random", state_sha256(model.state_dict())


def check_name(name: str) -> None:
    """Check that a name is that of a ViT of timm.

    Raises:
        UsageError: if it is not, with the nearest names.
    """
    if name not in timm.list_models() and not is_model_pretrained(name):
        names = timm.list_models(module=VIT_MODULES) + timm.list_models(module=VIT_MODULES, pretrained=True)
        raise unknown_backbone(name, names)
    if not is_model_in_modules(name, VIT_MODULES):
        raise _unsupported(name)


def _create(name: str, pretrained: bool) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    known = isinstance(model, (VisionTransformer, Eva)) and type(model.patch_embed) is PatchEmbed
    if not known or type(model.blocks[-1]) not in (Block, EvaBlock) or len(set(model.patch_embed.patch_size)) > 1:
        raise _unsupported(name)
    use_fused_attention(model, True)  # timm's environment variable would allow N x N attention matrices
    return model


def _create_pretrained(name: str) -> Any:
    if not is_model_pretrained(name):
        raise WeightsError(f"timm has no pretrained weights for {name}.", _OTHER_WAYS)
    _require_hub(name)
    try:
        return _create(name, pretrained=True)
    except SohesError:
        raise
    except OSError as error:
        raise _unreachable(name, error) from error
    except Exception as error:  # the hub's transport and damaged cache files raise errors of any type
        raise WeightsError(f"The weights of {name} could not be loaded ({first_line(error)}).", _OTHER_WAYS) from error


def _require_hub(name: str) -> None:
    """Check that weights are cached or the hub responds; without a network, a download would retry for a minute."""
    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if config is None or not config.hf_hub_id:
        return
    repository, _, revision = config.hf_hub_id.partition("@")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in names):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, names[0], revision=revision or None), timeout=_HUB_TIMEOUT_S)
    except HfHubHTTPError:
        return  # the hub responds; the download tries other file names
    except Exception as error:  # the transport's error types differ between versions
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> WeightsError:
    cache = constants.HF_HUB_CACHE
    message = f"The weights of {name} are neither in the local cache {cache} nor reachable ({first_line(error)})."
    return WeightsError(message, f"{_OTHER_WAYS} Or run once with access to huggingface.co, which fills the cache.")


def _unsupported(name: str) -> UsageError:
    return UsageError(
        f"The backbone {name!r} is not supported: only ViTs with patch tokens work, with square patches and pre-norm "
        "attention blocks.",
        "Name a plain ViT of timm, such as vit_base_patch8_224.dino.",
    )
