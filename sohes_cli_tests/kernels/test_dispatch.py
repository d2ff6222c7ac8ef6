"""The choice of a backend: the first that can run, or the one asked for, or an error that says why."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from sohes_kernels.dispatch import can_always_run, choose_backend, device_obstacle, triton_obstacle
from triton_support import needs_triton

GPU = torch.device("cuda")


def fails():
    return "it is broken"


def choose(backend, is_on_gpu=True, **obstacles):
    return choose_backend("an_op", backend, obstacles, is_on_gpu=is_on_gpu)


def test_auto_takes_the_first_that_can_run():
    assert choose("auto", triton=can_always_run, cpu=can_always_run, reference=can_always_run) == "triton"
    assert choose("auto", triton=fails, cpu=fails, reference=can_always_run) == "reference"
    assert choose("auto", triton=fails, cpu=can_always_run, reference=can_always_run) == "cpu"


def test_auto_does_not_interpret_kernels_on_the_cpu():
    assert choose("auto", is_on_gpu=False, triton=can_always_run, cpu=can_always_run, reference=can_always_run) == "cpu"
    assert choose("triton", is_on_gpu=False, triton=can_always_run, reference=can_always_run) == "triton"


def test_a_backend_by_name_runs_or_says_why_not():
    assert choose("cpu", triton=can_always_run, cpu=can_always_run) == "cpu"
    with pytest.raises(
        RuntimeError, match="the triton backend of an_op cannot run: it is broken; use backend='auto' or 'reference'"
    ):
        choose("triton", triton=fails, reference=can_always_run)
    with pytest.raises(ValueError, match="backend must be one of auto, reference, triton, not 'cuda'"):
        choose("cuda", triton=can_always_run, reference=can_always_run)


@pytest.fixture
def compiling(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return monkeypatch


@needs_triton
def test_an_old_gpu_is_named(compiling):
    compiling.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    compiling.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert device_obstacle(GPU) == "it needs a GPU of compute capability 8.0, and Tesla T4 has 7.5"
    for capability in ((8, 0), (9, 0), (12, 1)):
        compiling.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert device_obstacle(GPU) == ""


@needs_triton
def test_another_maker_s_gpu_is_named(compiling):
    compiling.setattr(torch.version, "hip", "6.4")
    assert device_obstacle(GPU) == "it is made for NVIDIA GPUs and this PyTorch is for AMD's"


@needs_triton
def test_another_device_is_named(compiling):
    assert (
        device_obstacle(torch.device("cpu"))
        == "the tensors are on cpu, not on a CUDA device (nor is TRITON_INTERPRET=1 set)"
    )
    compiling.setenv("TRITON_INTERPRET", "1")
    assert device_obstacle(torch.device("cpu")) == ""


def test_a_missing_package_and_another_type_are_named(compiling):
    compiling.setattr(importlib.util, "find_spec", lambda _: None)
    assert device_obstacle(GPU) == "the package triton is not installed"
    assert triton_obstacle(torch.ones(1)) == "the package triton is not installed"
    assert (
        triton_obstacle(torch.ones(1), torch.ones(1).double())
        == "its kernels take float32, bfloat16 and float16, not torch.float64"
    )


def test_arrays_are_merged_without_importing_torch():
    program = """
import sys
import numpy as np
from sohes_kernels import grid_edges, merge_region_graph, merge_regions
merge_region_graph(np.ones((6, 2)), grid_edges(2, 3), [0.5])
merge_regions(np.ones((2, 2, 3)), [0.5])
assert not {"torch", "triton"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
