"""CascadePSP: masks redrawn by the network that the paper uses, through its package `segmentation-refinement`.

The network was trained on masks that people drew (MSRA-10K, DUT-OMRON, ECSSD, FSS-1000), so labels refined with it are
not free of annotation. The package fetches its weights (259 MB) when it is first used, and keeps them in ~/.segmentation-refinement.

Source: Cheng, Chung, Tai and Tang, "CascadePSP: Toward Class-Agnostic and Very High-Resolution Segmentation via Global and
Local Refinement", CVPR 2020.
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

LONGEST_SIDE_PX = 900  # the global step's, and the side of the local step's crops


@functools.cache
def load_refiner(device: str) -> Any:
    """Load the network once a process.

    Args:
        device: a torch device, such as `cpu` or `cuda:0`.

    Raises:
        SohesError: if the package is not installed or its weights cannot be fetched.
    """
    try:
        package = importlib.import_module("segmentation_refinement")
    except ImportError as error:
        raise SohesError(
            f"refinement.method = cascadepsp needs the package segmentation-refinement, which cannot be imported ({error}).",
            "Install it with: pip install 'sohes[cascadepsp]'",
        ) from error
    try:
        return package.Refiner(device=device)
    except (OSError, RuntimeError) as error:
        raise SohesError(
            f"CascadePSP's weights (259 MB, in ~/.segmentation-refinement) cannot be fetched or read: {error}.",
            "Connect to the network for the first use, or choose --refine guided.",
        ) from error


def cascade_psp_mask(mask: NDArray[np.bool_], pixels: NDArray[np.uint8], refiner: Any) -> NDArray[np.bool_]:
    """Redraw one mask.

    Args:
        mask: bool [H, W].
        pixels: uint8 [H, W, 3], RGB: the package's own example passes BGR, but the network was trained on RGB
            and the package does not reorder channels.
        refiner: what `load_refiner` returned.

    Returns:
        The mask redrawn, bool [H, W].
    """
    probability = refiner.refine(
        pixels, mask.astype(np.uint8) * 255, fast=False, L=LONGEST_SIDE_PX
    )  # uint8 [H, W], 0 to 255
    return np.asarray(probability) > 127
