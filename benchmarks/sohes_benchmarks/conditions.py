"""The conditions of a measurement: a number without them is not reported."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sohes_cli.runs.processes import available_cores

__all__ = ["conditions", "device_name", "package_version"]

_PACKAGES = (
    *("numpy", "scipy", "numba", "opencv-python-headless", "scikit-image", "pycocotools"),
    *("torch", "timm", "triton", "xformers", "accelerate", "transformers"),
)
_ROOT = Path(__file__).parents[2]


def conditions(device: str = "cpu") -> dict[str, object]:
    """Device, processor, cores, Python, package versions and commit of this run.

    Args:
        device: "cpu", or "cuda" for the current GPU, which adds its driver, its CUDA version and its memory.

    Returns:
        Values that JSON can hold. The commit is that of the source tree that runs, with a "+" if its tracked files have
        been changed, and empty where an installed package runs.
    """
    found: dict[str, object] = {"device": device_name(device)}
    if device == "cuda":
        found |= _gpu()
    return found | {
        "processor": device_name("cpu"),
        "cores": available_cores(),
        "python": platform.python_version(),
        "packages": {name: installed for name in _PACKAGES if (installed := package_version(name))},
        "commit": _commit(),
    }


@cache
def device_name(device: str) -> str:
    """Product name of the processor ("cpu") or the current GPU ("cuda")."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def package_version(name: str) -> str:
    """The version of an installed package, or an empty string."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _gpu() -> dict[str, object]:
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda or "",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
    }


def _commit() -> str:
    """Commit of the tree that holds this file, not of a repository around an installed package."""
    top = _output("git", "-C", os.fspath(_ROOT), "rev-parse", "--show-toplevel")
    if not top or Path(top) != _ROOT or not (_ROOT / "kernels" / "sohes_kernels").is_dir():
        return ""
    commit = _output("git", "-C", os.fspath(_ROOT), "rev-parse", "--short", "HEAD")
    changed = _output(
        "git", "--no-optional-locks", "-C", os.fspath(_ROOT), "status", "--porcelain", "--untracked-files=no"
    )
    return commit + "+" * bool(commit and changed)


def _output(*command: str) -> str:
    """Output of a program; empty if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
