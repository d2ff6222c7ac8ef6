"""The backbone: a plain timm ViT between the exchanges of a ViT-Adapter -> feature maps at strides 4, 8, 16 and 32.

    maps = spatial prior(image);  tokens = patches(image)
    for each exchange:  inject maps into tokens, run the next blocks, extract tokens into maps
    result = norm(maps + tokens resized)

The ViT sees the image at a size at which its patches lie `token_stride` pixels apart, so any patch size works. Its class and register
tokens take part in attention, as in DINO. Position embeddings are interpolated to each image's own grid, not to the padded one.

Source: Chen et al. 2023, ViT-Adapter; a DINO ViT as start, Cao et al. 2024.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sohes_cli.errors import ConfigError
from sohes_cli.model.adapter import STRIDES, Exchange, SpatialPrior
from sohes_cli.model.config import MASK_STRIDE
from sohes_cli.model.deformable import reference_points
from sohes_cli.model.extent import Extent, MaskedBatchNorm, levels_of, resized
from sohes_cli.vit.build import build_vit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.config import ModelConfig

__all__ = ["AdaptedVit", "start_weights"]

_EXTRA_EXTRACTORS = 2  # after the last exchange


class AdaptedVit(nn.Module):
    """A ViT and its adapter, with random weights; see the module.

    Args:
        config: their sizes.

    Attributes:
        channels: C of the maps.

    Raises:
        UsageError: if timm has no such ViT.
        ConfigError: if the sizes do not fit together.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vit = build_vit(config.backbone, config.vit_shape, config.drop_path)
        self.vit.norm, self.vit.fc_norm = nn.Identity(), nn.Identity()  # tokens go on before the last norm
        self.channels, depth = int(self.vit.embed_dim), len(self.vit.blocks)
        if depth % config.interactions:
            raise ConfigError(
                f"model.interactions must divide the {depth} blocks of the ViT, not {config.interactions}."
            )
        if int(self.channels * config.adapter_value_ratio) % config.adapter_heads:
            inner = int(self.channels * config.adapter_value_ratio)
            raise ConfigError(
                f"model.adapter_heads must divide the {inner} channels of the adapter's values, not {config.adapter_heads}."
            )
        self.stride = config.token_stride
        self.patch_size = int(self.vit.patch_embed.patch_size[0])
        self.spm = SpatialPrior(config.prior_channels, self.channels)
        self.level_embed = nn.Parameter(torch.zeros(len(STRIDES), self.channels))
        last = config.interactions - 1
        self.interactions = nn.ModuleList(
            Exchange(self.channels, config, config.drop_path, _EXTRA_EXTRACTORS if i == last else 0)
            for i in range(config.interactions)
        )
        self.up = nn.ConvTranspose2d(self.channels, self.channels, kernel_size=2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (MaskedBatchNorm(self.channels) for _ in range(4))
        self.checkpointing = False
        self._reset()

    def _reset(self) -> None:
        nn.init.normal_(self.level_embed)
        for module in (self.spm, self.interactions, self.up):
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.trunc_normal_(layer.weight, std=(2.0 / (layer.weight[0].numel())) ** 0.5)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def forward(self, pixels: Tensor, extent: Extent) -> list[Tensor]:
        """Images [B, 3, H, W] to maps [B, C, h, w] at strides 4, 8, 16 and 32; zeros outside of an image."""
        first, *levels = self.spm(pixels, extent)
        grids = [extent.grid(stride) for stride in STRIDES]
        maps = torch.cat(
            [level.flatten(2).mT + embed for level, embed in zip(levels, self.level_embed, strict=True)], 1
        )
        tokens = self._embed(pixels, extent)
        tokens, maps = self._exchange(tokens, maps, extent, grids)
        (seen,) = levels_of(tokens[:, self._n_prefix :], [extent.grid(self.stride)])
        second, third, fourth = levels_of(maps, grids)
        found = (self.up(second) + first, second, third, fourth)
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return [
            norm(x + resized(seen, extent.grid(stride), extent, self.stride), extent.cells(stride))
            for norm, x, stride in zip(norms, found, (MASK_STRIDE, *STRIDES), strict=True)
        ]

    @property
    def _n_prefix(self) -> int:
        return int(self.vit.num_prefix_tokens)

    def _embed(self, pixels: Tensor, extent: Extent) -> Tensor:
        """Tokens that enter the first block, prefix tokens first, [B, P + h * w, C]."""
        vit = self.vit
        size = tuple(n * self.patch_size for n in extent.grid(self.stride))
        if size != tuple(pixels.shape[2:]):
            pixels = resized(pixels, (size[0], size[1]), extent, 1)
        x = vit.patch_embed(pixels).flatten(1, 2)
        position = self._positions(extent).to(x.dtype)
        prefix = [
            token.expand(x.shape[0], -1, -1).to(x.dtype)
            for token in (vit.cls_token, vit.reg_token)
            if token is not None
        ]
        tokens = torch.cat([*prefix, x + position], 1) if vit.no_embed_class else torch.cat([*prefix, x], 1) + position
        embedded: Tensor = vit.norm_pre(tokens)
        return embedded

    def _positions(self, extent: Extent) -> Tensor:
        """Position embeddings of each image's own grid, in the canvas, [B or 1, (P +) h * w, C]."""
        grid = extent.grid(self.stride)
        if not extent.sizes:
            return self._interpolated(grid)
        own = extent.cells(self.stride)
        made = {size: self._interpolated(size) for size in dict.fromkeys(own)}
        return torch.stack([self._placed(made[size][0], size, grid) for size in own])

    def _interpolated(self, grid: tuple[int, int]) -> Tensor:
        prefix = 0 if self.vit.no_embed_class else self._n_prefix
        embedding: Tensor = resample_abs_pos_embed(
            self.vit.pos_embed, list(grid), list(self.vit.patch_embed.grid_size), num_prefix_tokens=prefix
        )
        return embedding

    def _placed(self, position: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Embeddings of a small grid [(P +) n, C] in the upper left of a larger one."""
        n_prefix = len(position) - size[0] * size[1]
        placed = position.new_zeros(*grid, position.shape[1])
        placed[: size[0], : size[1]] = position[n_prefix:].view(*size, -1)
        return torch.cat([position[:n_prefix], placed.flatten(0, 1)])

    def _exchange(
        self, tokens: Tensor, maps: Tensor, extent: Extent, grids: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Run the blocks of the ViT and the exchanges between them."""
        places = reference_points([extent.grid(self.stride)], tokens.device)
        map_places = reference_points(grids, tokens.device)
        mask = self._attention_mask(extent, tokens)
        share = len(self.vit.blocks) // len(self.interactions)
        for i, exchange in enumerate(cast("list[Exchange]", list(self.interactions))):
            prefix, patches = tokens[:, : self._n_prefix], tokens[:, self._n_prefix :]
            tokens = torch.cat([prefix, exchange.injector(patches, places, maps, extent)], 1)
            for block in self.vit.blocks[i * share : (i + 1) * share]:
                tokens = self._run(block, tokens, mask)
            maps = exchange.extract(maps, map_places, tokens[:, self._n_prefix :], extent)
        return tokens, maps

    def _run(self, block: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            again: Tensor = checkpoint(block, tokens, mask, use_reentrant=False)
            return again
        out: Tensor = block(tokens, attn_mask=mask)
        return out

    def _attention_mask(self, extent: Extent, tokens: Tensor) -> Tensor | None:
        """What is added to attention logits, [B, 1, 1, P + h * w]: -inf for padding; None without any."""
        own = extent.flat_mask((self.stride,))
        if own is None:
            return None
        kept = torch.cat([own.new_ones(len(own), self._n_prefix), own], 1)[:, None, None]
        dtype = (
            torch.get_autocast_dtype(tokens.device.type)
            if torch.is_autocast_enabled(tokens.device.type)
            else tokens.dtype
        )
        return torch.zeros(kept.shape, dtype=dtype, device=kept.device).masked_fill(~kept, float("-inf"))


def start_weights(backbone: AdaptedVit, config: ModelConfig) -> None:
    """Fill the ViT with what `model.weights` names; `random` leaves it as it is.

    Args:
        backbone: whose ViT is filled.
        config: `weights` is `random`, `pretrained` (timm's cache or hub), a weights file, or a run of `sohes pretrain`.

    Raises:
        SohesError: if the weights cannot be had, are damaged, or belong to another ViT.
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
    state = {name: tensor for name, tensor in full.state_dict().items() if name in backbone.vit.state_dict()}
    backbone.vit.load_state_dict(state)
