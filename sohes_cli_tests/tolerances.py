"""How far a kernel may be from its reference: the only place in the tests that holds such numbers.

The distance of a result x from the truth y is the relative root mean square error, rms(x - y) / rms(y). The truth
is the reference in float64 on the very inputs that the kernel reads, so that a bound holds for the arithmetic of
the kernel and for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["RELATIVE_RMS", "assert_near", "relative_rms"]

RELATIVE_RMS = {  # float32 adds up a few hundred roundings of 2^-24; 16-bit types round inputs of products and results, 2^-11 and 2^-8
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 2e-2,
}


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return rms(actual - expected) / rms(expected) in float64; 0 if both are zero everywhere, infinity if only `expected` is."""
    difference = (actual.detach().double().cpu() - expected.detach().double().cpu()).norm().item()
    size = expected.detach().double().norm().item()
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def assert_near(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Hold each named result against the truth of the same name, within the bound of the inputs' `dtype`; NaN is never near.

    Raises:
        AssertionError: if names or shapes differ or a result is too far off; names the worst of them with its distance.
    """
    if actual.keys() != expected.keys():
        raise AssertionError(f"results {sorted(actual)} for {sorted(expected)}")
    for name, value in actual.items():
        if value.shape != expected[name].shape:
            raise AssertionError(f"{name} has shape {tuple(value.shape)} for {tuple(expected[name].shape)}")
    bound = RELATIVE_RMS[dtype]
    distances = {name: relative_rms(value, expected[name]) for name, value in actual.items()}
    far = {name: distance for name, distance in distances.items() if not distance <= bound}
    if far:
        raise AssertionError(f"relative RMS over {bound:g} for {dtype}: " + ", ".join(f"{name} {d:.3g}" for name, d in far.items()))
