"""CascadePSP, the paper's mask refiner, through its package `segmentation-refinement`.

The network was trained on human masks (MSRA-10K, DUT-OMRON, ECSSD, FSS-1000), so labels refined with it are not free of
annotation. On first use the package downloads its weights (259 MB) to ~/.segmentation-refinement.

Source: Cheng, Chung, Tai and Tang, "CascadePSP: Toward Class-Agnostic and Very High-Resolution Segmentation via Global
and Local Refinement", CVPR 2020.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_cli.errors import SohesError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LONGEST_SIDE_PX", "cascade_psp_mask", "load_refiner"]

LONGEST_SIDE_PX = 900  # of the image in the global step, and of the crops in the local step


@functools.cache
def load_refiner(device: str) -> Any:
    """Load the network onto a torch device, once per process.

    Raises:
        SohesError: if the package is not installed or its weights cannot be downloaded.
    """
    try:
        package = importlib.import_module("segmentation_refinement")
    except ImportError as error:
        package_fault = f"the package segmentation-refinement, which cannot be imported ({error})"
        message = f"refinement.method = cascadepsp needs {package_fault}."
        raise SohesError(message, "Install it with: pip install 'sohes[cascadepsp]'") from error
    try:
        return package.Refiner(device=device)
    except (OSError, RuntimeError) as error:
        message = f"CascadePSP's weights (259 MB, in ~/.segmentation-refinement) cannot be fetched or read: {error}."
        raise SohesError(message, "Connect to the network for the first use, or choose --refine guided.") from error


def cascade_psp_mask(mask: NDArray[np.bool_], pixels: NDArray[np.uint8], refiner: Any) -> NDArray[np.bool_]:
    """Refine one mask, bool [H, W], on an RGB image, uint8 [H, W, 3], by the result of `load_refiner`.

    The package's example passes BGR, but the network was trained on RGB and the package does not reorder channels.
    """
    probability = refiner.refine(pixels, mask.astype(np.uint8) * 255, fast=False, L=LONGEST_SIDE_PX)  # 0 to 255
    return np.asarray(probability) > 127
