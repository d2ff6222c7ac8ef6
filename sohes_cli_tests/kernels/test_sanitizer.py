"""Triton kernels under NVIDIA's compute-sanitizer: no access out of bounds, race or uninitialized read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from triton_support import needs_gpu

PROGRAM = Path(__file__).with_name("sanitized_operations.py")


@needs_gpu
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_kernels_are_clean(tool):
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", sys.executable, str(PROGRAM)]
    environment = os.environ | {
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"
    }  # else a neighbor in the cache hides an access out of bounds
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-1000:]
