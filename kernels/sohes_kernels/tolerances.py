"""How far a kernel may be from its reference: the only place that holds such numbers, for the tests and for the benchmarks.

The distance of a result x from the truth y is the relative root mean square error, rms(x - y) / rms(y). The truth
is the reference in float64 on the very inputs that the kernel reads, so that a bound holds for the arithmetic of
the kernel and for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RELATIVE_RMS", "relative_rms"]

RELATIVE_RMS = {  # float32 adds up a few hundred roundings of 2^-24; 16-bit types round inputs of products and results, 2^-11 and 2^-8
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 2e-2,
}
"""The bound of a result by the type of its inputs."""


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return rms(actual - expected) / rms(expected) in float64; 0 if both are zero everywhere, infinity if only `expected` is."""
    difference = float((actual.detach().double() - expected.detach().to(actual.device).double()).norm())
    size = float(expected.detach().double().norm())
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size
