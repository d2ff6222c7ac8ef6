"""The peer of training and of segmentation: the Mask2Former of `transformers` with a backbone of ours, equal in width
and depth.

Its pixel decoder, query decoder, matcher, losses and post-processing are those of the library, unchanged; the backbone
is ours, so what differs is what comes after it. It has no ancestor head. With our decoders' weights it says what our
network says, which is how it is checked.
"""

from __future__ import annotations

import re
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sohes_benchmarks.stages.scenes import label_masks
from sohes_cli.model.extent import Extent
from sohes_cli.model.pixels import network_input
from sohes_cli.model.public_weights import from_public

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.data.batch import Batch
    from sohes_cli.model.backbone import AdaptedVit
    from sohes_cli.model.config import ModelConfig
    from sohes_cli.model.segmentation_model import EntityModel
    from sohes_cli.training.config import LossConfig, TrainConfig

__all__ = ["Mask2FormerLearner", "Mask2FormerSegmenter", "build_mask2former", "mask2former_obstacle"]

_PIXEL_POINTS = 4  # which the library does not let one choose
_PROJECTION = re.compile(r"self_attn\.([qkv])_proj\.(?:weight|bias)$")  # three matrices that are one of ours


def mask2former_obstacle() -> str:
    """Why the peer cannot run here, or an empty string; where it can, the library is imported."""
    try:
        library = import_module("transformers")
        library.Mask2FormerForUniversalSegmentation, library.Mask2FormerImageProcessor  # noqa: B018 (they are imported only now)
    except ImportError as error:
        reason = " ".join(str(error).split())
        return f"transformers or what it needs is not installed ({reason}); pip install 'sohes[test]' brings it"
    return ""


def build_mask2former(model: EntityModel, loss: LossConfig) -> Any:
    """The library's network with our backbone itself and a copy of our decoders' weights.

    Args:
        model: ours; its deformable attention must have 4 points a level.
        loss: numbers of points and weights of the losses.

    Returns:
        A `Mask2FormerForUniversalSegmentation` of one class.

    Raises:
        ValueError: if the library has no such network.
    """
    library, parts = (
        import_module("transformers"),
        import_module("transformers.models.mask2former.modeling_mask2former"),
    )
    sizes = model.config
    if sizes.pixel_points != _PIXEL_POINTS:
        raise ValueError(f"transformers' pixel decoder has {_PIXEL_POINTS} points a level, not {sizes.pixel_points}")
    config = _settings(sizes, loss)
    peer = library.Mask2FormerForUniversalSegmentation(config)
    level = peer.model.pixel_level_module
    level.encoder, level.decoder = nn.Identity(), parts.Mask2FormerPixelDecoder(config, [model.backbone.channels] * 4)
    peer.load_state_dict(
        {"criterion.empty_weight": peer.criterion.empty_weight, **_renamed(model.state_dict(), peer.state_dict())}
    )
    level.encoder = _Maps(model.backbone)
    return peer


def _settings(sizes: ModelConfig, loss: LossConfig) -> Any:
    """Configure the library's decoders and losses like ours, with its smallest backbone, which is replaced."""
    library = import_module("transformers")
    stages = [f"stage{i}" for i in range(1, 5)]
    return library.Mask2FormerConfig(
        backbone_config=library.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_features=stages),
        feature_size=sizes.hidden_dim,
        mask_feature_size=sizes.hidden_dim,
        hidden_dim=sizes.hidden_dim,
        num_attention_heads=sizes.heads,
        encoder_layers=sizes.pixel_layers,
        encoder_feedforward_dim=sizes.pixel_mlp_dim,
        decoder_layers=sizes.decoder_layers + 1,  # it counts the learned queries
        dim_feedforward=sizes.decoder_mlp_dim,
        num_queries=sizes.queries,
        num_labels=1,
        class_weight=loss.class_weight,
        mask_weight=loss.mask_weight,
        dice_weight=loss.dice_weight,
        no_object_weight=loss.no_object_weight,
        train_num_points=loss.points,
        oversample_ratio=loss.oversample,
        importance_sample_ratio=loss.importance,
    )


def _renamed(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Our weights under those of the library's names that have a counterpart."""
    renamed: dict[str, Tensor] = {}
    for name in names:
        for own in from_public({name: torch.empty(0)}):
            projection = _PROJECTION.search(name)
            renamed[name] = state[own].chunk(3)["qkv".index(projection[1])] if projection else state[own]
    return renamed


class _Maps(nn.Module):
    """Our backbone as the library calls one."""

    def __init__(self, backbone: AdaptedVit) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.backbone(pixels, Extent.of(pixels, None)))


class Mask2FormerLearner:
    """The peer of `sohes_cli.training.learner.Learner`: forward, matching, losses, backward, clipping and AdamW.

    Its labels lie on the device beforehand as float32, which its losses need; ours are copied there in each step.

    Args:
        model: whose weights it starts from; its backbone is taken, not copied.
        config: the settings of the step.
        batch: the only one that it learns from, images that fill the canvas.
        device: where it learns.
        dtype: of autocast; float32 for none.
    """

    def __init__(
        self, model: EntityModel, config: TrainConfig, batch: Batch, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._network = build_mask2former(model, config.loss).to(device).train()
        self._config, self._device, self._dtype = config.optimizer, device, dtype
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(),
            lr=config.optimizer.learning_rate,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        self._batch = batch
        self._masks = [masks.to(device) for masks in label_masks(batch)]
        self._classes = [torch.zeros(len(masks), dtype=torch.int64, device=device) for masks in self._masks]

    def step(self) -> dict[str, float]:
        """Take one optimizer step; its loss and the norm of its gradient."""
        self._optimizer.zero_grad()
        pixels = network_input(self._batch.pixels.to(self._device), self._batch.sizes)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss = self._network(pixel_values=pixels, mask_labels=self._masks, class_labels=self._classes).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._config.gradient_clip)
        self._optimizer.step()
        return {"loss": float(loss.detach()), "gradient_norm": float(norm)}


class Mask2FormerSegmenter:
    """The peer of `sohes_cli.inference.segmenter.Segmenter`: the library's processor, network and instance
    post-processing.

    Args:
        model: ours, whose backbone is taken and whose decoders are copied; already on the device.
        loss: see `build_mask2former`.
        side: of the square to which a photograph is resized.
        device: where it computes.
        dtype: of autocast; float32 for none.

    Attributes:
        min_score: the least score of a mask.
    """

    def __init__(
        self, model: EntityModel, loss: LossConfig, side: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._network = build_mask2former(model, loss).to(device).eval()
        self._processor = import_module("transformers").Mask2FormerImageProcessor(size={"height": side, "width": side})
        self._device, self._dtype = device, dtype
        self.min_score = 0.0

    def __call__(self, photograph: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Masks of a photograph [H, W, 3] at its own size, bool [N, H, W], and their scores, [N]."""
        found = self._found(photograph, binary=True)
        return found["segmentation"].bool().cpu().numpy(), _scores(found)

    def scores(self, photograph: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The scores alone, without a map for each mask."""
        return _scores(self._found(photograph, binary=False))

    @torch.no_grad()
    def _found(self, photograph: NDArray[np.uint8], *, binary: bool) -> dict[str, Any]:
        inputs = self._processor(images=photograph, return_tensors="pt", device=self._device)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            output = self._network(pixel_values=inputs["pixel_values"])
        with self._device:  # where it makes the map of segments, which must be where the masks are
            found: list[dict[str, Any]] = self._processor.post_process_instance_segmentation(
                output, self.min_score, target_sizes=[photograph.shape[:2]], return_binary_maps=binary
            )
        return found[0]


def _scores(found: dict[str, Any]) -> NDArray[np.float64]:
    return np.array([segment["score"] for segment in found["segments_info"]], np.float64)
