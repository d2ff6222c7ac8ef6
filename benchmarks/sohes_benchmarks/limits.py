"""Measured limits of the device: copy bandwidth and matrix rates, and the least time they allow for a call.

    least time = max(compulsory bytes / copy bandwidth, compulsory operations / matrix rate)

A large copy counts the bytes read and those written. Data are random, because some processors are faster on zeros.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sohes_benchmarks.timing import time_device_call, time_host_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sohes_benchmarks.timing import Timing
    from sohes_benchmarks.workload import Device

__all__ = ["Limits", "measure_limits"]

_COPIED_BYTES = {"cpu": 2**27, "cuda": 2**32}
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Limits:
    """The measured ceilings of a device.

    Args:
        device: "cpu" or "cuda".
        threads: of the host, in which a CPU's ceilings were measured.
        copy_bytes_per_s: bytes read and written in a second by a large copy.
        matrix_flops_per_s: operations in a second of a large matrix product by type; "tf32" is float32 on the matrix
            units of a GPU.
    """

    device: str
    threads: int
    copy_bytes_per_s: float
    matrix_flops_per_s: Mapping[str, float]

    def least_ms(self, compulsory_bytes: int, compulsory_flops: int, dtype: str) -> float:
        """Lower bound of the time in milliseconds; types without a measured matrix rate use that of float32."""
        rate = self.matrix_flops_per_s.get(dtype, self.matrix_flops_per_s["float32"])
        return 1000 * max(compulsory_bytes / self.copy_bytes_per_s, compulsory_flops / rate)

    def to_json(self) -> dict[str, Any]:
        """The limits as JSON holds them."""
        return asdict(self) | {
            "copy_bytes_per_s": round(self.copy_bytes_per_s),
            "matrix_flops_per_s": {dtype: round(rate) for dtype, rate in self.matrix_flops_per_s.items()},
        }


def measure_limits(device: Device, threads: int, seconds: float) -> Limits:
    """Measure copy bandwidth and matrix rates of the device.

    Args:
        device: "cpu" or "cuda".
        threads: what PyTorch has been limited to; see `limited_threads`.
        seconds: time to spend on each of them.
    """

    def median_s(call: Callable[[], Any]) -> float:
        call()  # touches memory for the first time
        timing: Timing = time_device_call(call, seconds) if device == "cuda" else time_host_call(call, seconds, threads)
        return timing.percentile(50) / 1000

    rates = {"float32": _matrix_rate(device, "float32", median_s)}
    if device == "cuda":
        rates |= {
            "tf32": _tf32_rate(median_s),
            **{dtype: _matrix_rate(device, dtype, median_s) for dtype in ("bfloat16", "float16")},
        }
    return Limits(device, threads, _copy_bandwidth(device, median_s), rates)


def _copy_bandwidth(device: Device, median_s: Callable[[Callable[[], Any]], float]) -> float:
    import torch

    source = torch.rand(_COPIED_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_s(lambda: target.copy_(source))


def _matrix_rate(device: Device, dtype: str, median_s: Callable[[Callable[[], Any]], float]) -> float:
    import torch

    side = _MATRIX_SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return float(2 * side**3 / median_s(lambda: torch.matmul(a, b, out=out)))


def _tf32_rate(median_s: Callable[[Callable[[], Any]], float]) -> float:
    """The rate of float32 products that may round their factors to 10 bits, which no check of this package allows."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _matrix_rate("cuda", "float32", median_s)
    finally:
        torch.set_float32_matmul_precision(before)
