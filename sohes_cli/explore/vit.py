"""Patch features of a frozen timm ViT: the keys of its last attention layer, on the patch grid of an image.

From RGB images to one vector per patch, the input of the merging step. SOHES starts from a frozen, self-supervised DINO ViT (Cao et al.
2024, self-exploration); that the features are the last layer's keys, before any attention of that layer, is HASSOD's reading of
the same step (same first author). Position embeddings are interpolated to the grid, so any size that the patches tile is right.
The last block is entered no further than its key projection, and no N x N attention is held anywhere.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.layers.patch_embed import PatchEmbed
from timm.models import is_model_in_modules, is_model_pretrained
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from torch.nn import functional

from sohes_cli.errors import SohesError, UsageError, WeightsError
from sohes_cli.explore.weights import file_sha256, first_line, load_into, load_state_dict, state_sha256, torch_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["VIT_THRESHOLDS", "VitBackbone"]

VIT_THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Merging thresholds for ViT keys: UnSAM's list, modelled on SOHES, whose paper names no values."""

_VIT_MODULES = ("deit", "eva", "vision_transformer")
_HUB_TIMEOUT_S = 5.0
_OTHER_WAYS = "Pass --weights FILE, or use the embedded --backbone color-texture, which needs none."


class VitBackbone:
    """A frozen timm ViT that turns a batch of images of one size into raw keys of its last block.

    Args:
        name: a timm name with or without tag, such as `vit_base_patch8_224.dino`: a VisionTransformer (DINO, DINOv2 with and without
            registers, DeiT, ...) or an Eva (DINOv3, EVA-02). The tag also sets the mean and deviation of the pixels, so a file of
            DINO weights belongs to a name that ends in `.dino`.
        weights: a local file; None for timm's pretrained weights from the hub's cache, downloaded if they are not there; or
            "random", the same random weights at each call.
        device: a torch device.
        precision: "bf16" runs the blocks under autocast; tokens are added up, and the keys computed, in fp32 all the same.

    Attributes:
        name: as given.
        model: the timm model, in eval mode, on `device`.
        patch_size: side of a patch in pixels; images must be multiples of it.
        channels: C, the number of features of a patch.
        thresholds: the default merging thresholds for these features.
        identity: name, kind of weights (hub, file or random) and their SHA-256 (of the file, else of the tensors).

    Raises:
        UsageError: if timm has no model of that name, it is not such a ViT, or the device or the file does not exist.
        WeightsError: if the weights cannot be had, cannot be read or belong to another model.
    """

    thresholds: tuple[float, ...] = VIT_THRESHOLDS

    def __init__(
        self,
        name: str,
        *,
        weights: Path | Literal["random"] | None = None,
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        _check_name(name)
        self.name = name
        self.precision = precision
        self.device = torch_device(device)
        self.model, kind, sha256 = _build(name, weights)
        self.identity = {"name": name, "weights": kind, "sha256": sha256}
        self.model.to(self.device).eval().requires_grad_(False)
        self.patch_size = int(self.model.patch_embed.patch_size[0])
        self.channels = int(_key_projection(self.model.blocks[-1].attn)[0].shape[0])
        self._mean, self._std = (
            255 * torch.tensor(self.model.pretrained_cfg[k], device=self.device).view(1, -1, 1, 1) for k in ("mean", "std")
        )

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the last block's keys for every patch.

        Keys are raw: not normalized, before any key norm of the attention and, for DINOv3 and EVA-02, before the rotary position
        embedding; the heads are concatenated, and class and register tokens left out. On the CPU an image alone and in a batch
        differ by fp32 rounding only (matrix products of another size may add in another order).

        Args:
            images: RGB, uint8 [B, H, W, 3]; H and W positive multiples of `patch_size`.

        Returns:
            Keys, float32 [B, C, h, w], contiguous, with h = H / patch_size and w = W / patch_size.

        Raises:
            ValueError: if the shape or type of `images` is another.
        """
        h, w = self._grid(images)
        if not len(images):
            return np.empty((0, self.channels, h, w), np.float32)
        with torch.inference_mode():
            pixels = (self._upload(images).permute(0, 3, 1, 2).float() - self._mean) / self._std  # [B, 3, H, W]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                tokens = _last_block_input(self.model, pixels)
            # outside autocast: in fp32 this product costs little, and its result is not rounded to 8 bits
            keys = functional.linear(tokens[:, -h * w :].float(), *_key_projection(self.model.blocks[-1].attn))  # [B, h*w, C]
            result: NDArray[np.float32] = keys.transpose(1, 2).contiguous().cpu().numpy()
        return result.reshape(len(images), self.channels, h, w)

    def _grid(self, images: NDArray[np.uint8]) -> tuple[int, int]:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
        (h, rest_y), (w, rest_x) = (divmod(side, self.patch_size) for side in images.shape[1:3])
        if rest_y or rest_x or not h or not w:
            raise ValueError(f"height and width must be positive multiples of {self.patch_size}, not {list(images.shape[1:3])}")
        return h, w

    def _upload(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(np.array(images, order="C"))  # a copy: the caller's array may be read-only
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True)


def _last_block_input(model: Any, pixels: Tensor) -> Tensor:
    """The normalized tokens [B, P + h*w, C] that enter the last block's attention, P prefix tokens first."""
    x = model.patch_embed(pixels)
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)
        x = model.norm_pre(x)
        for depth, block in enumerate(model.blocks[:-1]):
            x = block(x, rope=rope[depth] if model.rope_mixed and rope is not None else rope)  # mixed: one embedding a block
    else:
        x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
        x = model.blocks[:-1](x)
    tokens: Tensor = model.blocks[-1].norm1(x)
    return tokens


def _key_projection(attention: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [C, D] and bias [C] of the keys alone; Eva's fused projection keeps its bias apart, and that of the keys is zero."""
    if getattr(attention, "k_proj", None) is not None:
        return attention.k_proj.weight, attention.k_proj.bias
    weight, bias = attention.qkv.weight, attention.qkv.bias
    rows = slice(len(weight) // 3, 2 * len(weight) // 3)
    return weight[rows], None if bias is None else bias[rows]


def _build(name: str, weights: Path | Literal["random"] | None) -> tuple[Any, str, str]:
    """Return the model, the kind of its weights and their SHA-256."""
    if isinstance(weights, Path):
        state = load_state_dict(weights)  # first, so that a bad file does not wait for the model
        model = _create(name, pretrained=False)
        load_into(model, state, str(weights))
        return model, "file", file_sha256(weights)
    model = _pretrained(name) if weights is None else _create(name, pretrained=False)
    return model, "hub" if weights is None else "random", state_sha256(model.state_dict())


def _create(name: str, pretrained: bool) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    _check_architecture(name, model)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # the environment can switch it off, and N x N attention would be held
    return model


def _pretrained(name: str) -> Any:
    if not is_model_pretrained(name):
        raise WeightsError(f"timm has no pretrained weights for {name}.", _OTHER_WAYS)
    _require_hub(name)
    try:
        return _create(name, pretrained=True)
    except SohesError:
        raise
    except OSError as error:
        raise _unreachable(name, error) from error
    except Exception as error:  # whatever the hub's transport or a damaged cache file raises
        raise WeightsError(f"The weights of {name} could not be loaded ({first_line(error)}).", _OTHER_WAYS) from error


def _require_hub(name: str) -> None:
    """Ask the hub once for weights that are not in the cache: without a network, the download's own retries take most of a minute."""
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
        return  # it answers; whether it has the file under another name is for the download to find out
    except Exception as error:  # the errors of its transport have no common type among versions
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> WeightsError:
    message = f"The weights of {name} are neither in the local cache {constants.HF_HUB_CACHE} nor reachable ({first_line(error)})."
    return WeightsError(message, f"{_OTHER_WAYS} Or run once with access to huggingface.co, which fills the cache.")


def _check_name(name: str) -> None:
    if name not in timm.list_models() and not is_model_pretrained(name):
        names = timm.list_models(module=_VIT_MODULES) + timm.list_models(module=_VIT_MODULES, pretrained=True)
        close = get_close_matches(name, names, n=3, cutoff=0.6)
        hint = f"Did you mean {' or '.join(close)}?" if close else "Name a ViT of timm, such as vit_base_patch8_224.dino, or color-texture."
        raise UsageError(f"There is no backbone {name!r}.", hint)
    if not is_model_in_modules(name, _VIT_MODULES):
        raise _unsupported(name)


def _check_architecture(name: str, model: Any) -> None:
    known = isinstance(model, (VisionTransformer, Eva)) and type(model.patch_embed) is PatchEmbed
    if not known or type(model.blocks[-1]) not in (Block, EvaBlock) or len(set(model.patch_embed.patch_size)) > 1:
        raise _unsupported(name)


def _unsupported(name: str) -> UsageError:
    return UsageError(
        f"The backbone {name!r} is not supported: only ViTs with patch tokens work, with square patches and pre-norm attention blocks.",
        "Name a plain ViT of timm, such as vit_base_patch8_224.dino.",
    )
