"""The backbone: a plain timm ViT with a ViT-Adapter -> feature maps at strides 4, 8, 16 and 32.

    maps = spatial prior(image);  tokens = patch embedding(image)
    per interaction:  inject maps into tokens, run the next blocks, extract tokens into maps
    output = norm(maps + resized tokens)

The ViT sees the image resized so that its patches are `token_stride` pixels apart, so any patch size works. Class and
register tokens take part in attention, as in DINO. Position embeddings are interpolated to each image's own grid, not
to the canvas.

Source: Chen et al. 2023, ViT-Adapter; initialization from a DINO ViT, Cao et al. 2024.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sohes_cli.errors import ConfigError
from sohes_cli.model.adapter import STRIDES, InteractionBlock, SpatialPrior
from sohes_cli.model.config import MASK_STRIDE
from sohes_cli.model.deformable import get_reference_points
from sohes_cli.model.extent import Extent, MaskedBatchNorm, resize, split_levels
from sohes_cli.vit.build import build_vit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.config import ModelConfig

__all__ = ["AdaptedVit", "start_weights"]

_EXTRA_EXTRACTORS = 2  # after the last interaction


class AdaptedVit(nn.Module):
    """A ViT and its adapter, with random weights.

    Args:
        config: their sizes.

    Attributes:
        channels: C of the maps.
        checkpointing: True to recompute the ViT's blocks in the backward pass.

    Raises:
        UsageError: if timm has no such ViT.
        ConfigError: if the sizes do not fit together.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vit = build_vit(config.backbone, config.vit_shape, config.drop_path)
        self.vit.norm, self.vit.fc_norm = nn.Identity(), nn.Identity()  # the adapter takes tokens before the last norm
        self.channels, depth = int(self.vit.embed_dim), len(self.vit.blocks)
        if depth % config.interactions:
            raise ConfigError(
                f"model.interactions must divide the {depth} blocks of the ViT, not {config.interactions}."
            )
        inner = int(self.channels * config.adapter_value_ratio)
        if inner % config.adapter_heads:
            raise ConfigError(
                f"model.adapter_heads must divide the {inner} channels of the adapter's values, "
                f"not {config.adapter_heads}."
            )
        self.stride = config.token_stride
        self.patch_size = int(self.vit.patch_embed.patch_size[0])
        self.spm = SpatialPrior(config.prior_channels, self.channels)
        self.level_embed = nn.Parameter(torch.zeros(len(STRIDES), self.channels))
        self.interactions = nn.ModuleList(
            InteractionBlock(self.channels, config, config.drop_path, extra)
            for extra in [0] * (config.interactions - 1) + [_EXTRA_EXTRACTORS]
        )
        self.up = nn.ConvTranspose2d(self.channels, self.channels, kernel_size=2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (MaskedBatchNorm(self.channels) for _ in range(4))
        self.checkpointing = False
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.level_embed)
        for module in (self.spm, self.interactions, self.up):
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.trunc_normal_(layer.weight, std=(2.0 / (layer.weight[0].numel())) ** 0.5)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def forward(self, pixels: Tensor, extent: Extent) -> list[Tensor]:
        """Map images [B, 3, H, W] to [B, C, h, w] at strides 4, 8, 16 and 32, zeros in the padding."""
        first, *levels = self.spm(pixels, extent)
        spatial_shapes = [extent.grid(stride) for stride in STRIDES]
        maps = torch.cat([x.flatten(2).mT + embed for x, embed in zip(levels, self.level_embed, strict=True)], 1)
        tokens, maps = self._interact(self._embed(pixels, extent), maps, extent, spatial_shapes)
        (patches,) = split_levels(tokens[:, self._num_prefix :], [extent.grid(self.stride)])
        second, third, fourth = split_levels(maps, spatial_shapes)
        levels = [self.up(second) + first, second, third, fourth]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return [
            norm(x + resize(patches, extent.grid(stride), extent, self.stride), extent.cells(stride))
            for norm, x, stride in zip(norms, levels, (MASK_STRIDE, *STRIDES), strict=True)
        ]

    @property
    def _num_prefix(self) -> int:
        return int(self.vit.num_prefix_tokens)

    def _embed(self, pixels: Tensor, extent: Extent) -> Tensor:
        """Compute the input tokens of the first block, prefix tokens first, [B, P + h * w, C]."""
        vit = self.vit
        height, width = (n * self.patch_size for n in extent.grid(self.stride))
        if (height, width) != tuple(pixels.shape[2:]):
            pixels = resize(pixels, (height, width), extent, 1)
        x = vit.patch_embed(pixels).flatten(1, 2)
        pos_embed = self._pos_embed(extent).to(x.dtype)
        prefix_tokens = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        prefix = [token.expand(x.shape[0], -1, -1).to(x.dtype) for token in prefix_tokens]
        if vit.no_embed_class:
            tokens = torch.cat([*prefix, x + pos_embed], 1)
        else:
            tokens = torch.cat([*prefix, x], 1) + pos_embed
        embedded: Tensor = vit.norm_pre(tokens)
        return embedded

    def _pos_embed(self, extent: Extent) -> Tensor:
        """Interpolate position embeddings to each image's own grid, padded to the canvas, [B or 1, (P +) h * w, C]."""
        grid, cells = extent.grid(self.stride), extent.cells(self.stride)
        if not cells:
            return self._interpolated(grid)
        by_size = {size: _padded(self._interpolated(size)[0], size, grid) for size in dict.fromkeys(cells)}
        return torch.stack([by_size[size] for size in cells])

    def _interpolated(self, grid: tuple[int, int]) -> Tensor:
        num_prefix = 0 if self.vit.no_embed_class else self._num_prefix
        embedding: Tensor = resample_abs_pos_embed(
            self.vit.pos_embed, list(grid), list(self.vit.patch_embed.grid_size), num_prefix_tokens=num_prefix
        )
        return embedding

    def _interact(
        self, tokens: Tensor, maps: Tensor, extent: Extent, spatial_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Run the interactions, each around its share of the ViT's blocks."""
        token_points = get_reference_points([extent.grid(self.stride)], tokens.device)
        map_points = get_reference_points(spatial_shapes, tokens.device)
        attn_mask = self._attn_mask(extent, tokens)
        blocks = len(self.vit.blocks) // len(self.interactions)
        for i, interaction in enumerate(cast("list[InteractionBlock]", list(self.interactions))):
            prefix, patches = tokens[:, : self._num_prefix], tokens[:, self._num_prefix :]
            tokens = torch.cat([prefix, interaction.injector(patches, token_points, maps, extent)], 1)
            for block in self.vit.blocks[i * blocks : (i + 1) * blocks]:
                tokens = self._run(block, tokens, attn_mask)
            maps = interaction.extract(maps, map_points, tokens[:, self._num_prefix :], extent)
        return tokens, maps

    def _run(self, block: Any, tokens: Tensor, attn_mask: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            recomputed: Tensor = checkpoint(block, tokens, attn_mask, use_reentrant=False)
            return recomputed
        out: Tensor = block(tokens, attn_mask=attn_mask)
        return out

    def _attn_mask(self, extent: Extent, tokens: Tensor) -> Tensor | None:
        """Build the bias of attention logits, [B, 1, 1, P + h * w]: -inf for padding; None without padding."""
        valid = extent.flat_mask((self.stride,))
        if valid is None:
            return None
        device = tokens.device.type
        valid = torch.cat([valid.new_ones(len(valid), self._num_prefix), valid], 1)[:, None, None]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
        return torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill(~valid, float("-inf"))


def _padded(pos_embed: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Place embeddings of a small grid [(P +) n, C] in the upper left of a larger one."""
    num_prefix = len(pos_embed) - size[0] * size[1]
    padded = pos_embed.new_zeros(*grid, pos_embed.shape[1])
    padded[: size[0], : size[1]] = pos_embed[num_prefix:].view(*size, -1)
    return torch.cat([pos_embed[:num_prefix], padded.flatten(0, 1)])


def start_weights(backbone: AdaptedVit, config: ModelConfig) -> None:
    """Load the ViT's initial weights, in place.

    Args:
        backbone: the module whose ViT is filled.
        config: `weights` is `random` (nothing is loaded), `pretrained` (timm's cache or hub), a weights file, or a run
            of `sohes pretrain`.

    Raises:
        SohesError: if the weights cannot be read or downloaded, or belong to another ViT.
    """
    if config.weights == "random":
        return
    from sohes_cli.vit.pretrained import find_backbone
    from sohes_cli.vit.published import published_vit
    from sohes_cli.vit.weights import load_into, load_state_dict

    full = build_vit(config.backbone, config.vit_shape)
    if config.weights == "pretrained":
        full.load_state_dict(published_vit(config.backbone)[0].state_dict())
    else:
        file = find_backbone(config.weights, "--weights")
        load_into(full, load_state_dict(Path(file)), str(file))
    names = backbone.vit.state_dict().keys()
    backbone.vit.load_state_dict({name: tensor for name, tensor in full.state_dict().items() if name in names})
