"""The network of phases 2 and 3: images -> queries with class, mask and ancestor predictions.

    backbone (ViT + adapter) -> pixel decoder -> query decoder -> ancestor head

Source: Cao et al. 2024, self-instruction; parts of Cheng et al. 2022 (Mask2Former) and Chen et al. 2023 (ViT-Adapter).
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
    """The network with random weights; `sohes_cli.model.backbone.start_weights` loads those of the ViT.

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
            pixels: RGB normalized by ImageNet's mean and deviation, float [B, 3, H, W], H and W multiples of 32.
            sizes: (height, width) of each image, in the upper left of the canvas; None if all fill it. Pixels from an
                image's border to its next multiple of 32 must be 0; those beyond have no influence.

        Returns:
            Predictions of every stage; `ancestor_head(output.queries)` gives the ancestor logits.

        Raises:
            ValueError: if a side is not a multiple of 32, or an image does not fit.
        """
        extent = Extent.of(pixels, sizes)
        features, maps = self.pixel_decoder(self.backbone(pixels, extent), extent)
        output: Output = self.query_decoder(features, maps, extent)
        return output
