"""Hold a kernel's results against the truth within the bounds of `sohes_kernels.tolerances`, the only place that holds
such numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sohes_kernels.tolerances import RELATIVE_RMS, relative_rms

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

__all__ = ["RELATIVE_RMS", "assert_near", "relative_rms"]


def assert_near(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Hold each named result against the truth of the same name, within the bound of the inputs' `dtype`; NaN is never
    near.

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
        raise AssertionError(
            f"relative RMS over {bound:g} for {dtype}: " + ", ".join(f"{name} {d:.3g}" for name, d in far.items())
        )
