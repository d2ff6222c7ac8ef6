"""Tolerances of kernels against their references, for tests and benchmarks alike.

The error of a result x is its relative root mean square error, rms(x - y) / rms(y), against the reference y in float64
on the same inputs, so that a bound covers the arithmetic of the kernel only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RELATIVE_RMS", "relative_rms"]

# float32 sums a few hundred roundings of 2^-24; 16-bit types round factors and results by 2^-11 and 2^-8
RELATIVE_RMS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Bound of the error of a result by the dtype of its inputs."""


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return rms(actual - expected) / rms(expected) in float64; 0 if both are zero, infinity if only `expected` is."""
    difference = float((actual.detach().double() - expected.detach().to(actual.device).double()).norm())
    size = float(expected.detach().double().norm())
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size
