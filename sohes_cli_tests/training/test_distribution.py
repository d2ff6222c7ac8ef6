"""What the processes of a run do together; runs of several are in the tests of the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.runs.devices import check_device, resolve_precision
from sohes_cli.runs.processes import available_cores
from sohes_cli.runs.shards import Shard
from sohes_cli.training.distribution import (
    any_process,
    by_main,
    default_workers,
    make_accelerator,
    out_of_memory,
    require_divisible,
    seed_step,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate's state of this program, as if it had just begun, before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_fresh_accelerate")
def test_an_accelerator_of_the_program_that_does_not_fit_is_wrong_usage() -> None:
    Accelerator(mixed_precision="bf16", cpu=True)
    with pytest.raises(UsageError, match="mixed_precision") as caught:
        make_accelerator("cpu")
    assert "in a new program" in caught.value.hint


def test_precision_auto_is_one_that_the_device_has() -> None:
    assert resolve_precision("fp32", on_cpu=False) == "fp32"
    assert resolve_precision("bf16", on_cpu=True) == "bf16"
    assert resolve_precision("fp16", on_cpu=True) == "fp16"
    assert resolve_precision("auto", on_cpu=True) in ("fp32", "bf16")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", ""])
def test_devices_are_chosen_by_the_launcher(device: str) -> None:
    with pytest.raises(UsageError, match="--device must be auto or cpu") as caught:
        check_device(device)
    assert "CUDA_VISIBLE_DEVICES" in caught.value.hint
    check_device("auto")
    check_device("cpu")


def test_one_process_reads_for_a_cpu_and_its_share_of_cores_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator("cpu")
    assert default_workers(accelerator, Shard()) == 1
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    assert default_workers(accelerator, Shard()) == min(8, available_cores())
    assert default_workers(accelerator, Shard(0, 10_000, 0, 10_000)) == 1


def test_a_batch_must_be_divisible(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator("cpu")
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    require_divisible(6, accelerator)
    with pytest.raises(UsageError, match="--batch-size 4 cannot be shared by 3 processes"):
        require_divisible(4, accelerator)
    error = out_of_memory(accelerator, 6, "Lower it.")
    assert str(error) == "The memory of cpu does not suffice for --batch-size 6, 2 on each of 3 devices. Lower it."


def test_one_process_decides_for_itself() -> None:
    accelerator = make_accelerator("cpu")
    assert any_process(accelerator, True)
    assert not any_process(accelerator, False)


def test_what_the_main_process_does_passes_its_errors() -> None:
    accelerator, done = make_accelerator("cpu"), []
    by_main(accelerator, lambda: done.append(1))
    assert done == [1]

    def fail() -> None:
        raise StoreError("The disk is full.", "Free space.")

    with pytest.raises(StoreError, match=r"The disk is full\. Free space\."):
        by_main(accelerator, fail)


def test_steps_processes_and_seeds_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, drawn = make_accelerator("cpu"), set()
    for process in range(3):
        monkeypatch.setattr(Accelerator, "process_index", process)
        for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1)):
            seed_step(accelerator, seed, step)
            drawn.add(float(torch.rand(())))
            seed_step(accelerator, seed, step)
            assert float(torch.rand(())) in drawn
    assert len(drawn) == 12
