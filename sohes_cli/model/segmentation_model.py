"""The network of phases 2 and 3: images -> queries with a class, a mask, and what they are ancestors of.

    backbone (ViT + adapter) -> pixel decoder -> query decoder -> ancestor head

Source: Cao et al. 2024, self-instruction; Cheng et al. 2022 (Mask2Former) and Chen et al. 2023 (ViT-Adapter) for the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from sohes_cli.model.ancestor_head import AncestorHead
from sohes_cli.model.backbone import AdaptedVit
from sohes_cli.model.extent import Extent
from sohes_cli.model.pixel_decoder import PixelDecoder
from sohes_cli.model.query_decoder import QueryDecoder
from sohes_cli.vit.build import use_fused_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.config import ModelConfig
    from sohes_cli.model.output import Output

__all__ = ["EntityModel"]


class EntityModel(nn.Module):
    """All parts with random weights (see `sohes_cli.model.backbone.start_weights`).

    Args:
        config: their sizes.

    Raises:
        SohesError: if timm has no such ViT, or the sizes do not fit together.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = AdaptedVit(config)
        self.pixel_decoder = PixelDecoder([self.backbone.channels] * 4, config)
        self.query_decoder = QueryDecoder(config)
        self.ancestor_head = AncestorHead(config.hidden_dim)
        use_fused_attention(self.backbone, False)

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Output:
        """Predict.

        Args:
            pixels: RGB less ImageNet's mean over its deviation, float [B, 3, H, W], H and W multiples of 32.
            sizes: (height, width) of each image, which begins at the upper left; None if they fill the canvas. What lies
                beyond an image, and beyond its next multiple of 32, changes nothing, as long as the former is 0.

        Returns:
            The predictions of every stage; ancestors follow from `ancestor_head(output.queries)`.

        Raises:
            ValueError: if sides are no multiples of 32, or an image does not fit.
        """
        extent = Extent.of(pixels, sizes)
        features, maps = self.pixel_decoder(self.backbone(pixels, extent), extent)
        output: Output = self.query_decoder(features, maps, extent)
        return output
