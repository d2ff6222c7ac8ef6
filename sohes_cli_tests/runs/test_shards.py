"""The share of one process among many, from the variables that launchers set."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sohes_cli.errors import UsageError
from sohes_cli.runs.shards import Shard, is_launched_alone, shard_of_environment, wait_for_others

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
INTEL_MPI = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
ACCELERATE_ALONE = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_USE_CPU": "True",
}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
def test_shards_part_the_names(count: int) -> None:
    names = tuple(f"{i:02}.jpg" for i in range(10))
    shards = [Shard(i, count).pick(names) for i in range(count)]
    assert sorted(name for shard in shards for name in shard) == list(names)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("environment", [TORCHRUN, OPEN_MPI, INTEL_MPI])
def test_each_launcher_is_understood(environment: dict[str, str]) -> None:
    assert shard_of_environment(environment) == Shard(5, 8, 1, 4)


def test_without_a_launcher_one_process_does_all() -> None:
    assert shard_of_environment({"PATH": "/bin"}) == Shard(0, 1, 0, 1)


def test_local_numbers_may_be_left_out() -> None:
    assert shard_of_environment({"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2, 0, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": "8"}, "RANK=8, WORLD_SIZE=8"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK=4"),
        ({"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE=9"),
        ({"RANK": "first"}, "RANK must be a whole number, not 'first'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a whole number, not ''"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(change: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shard_of_environment({**TORCHRUN, **change})


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE"])
def test_half_of_a_launcher_is_refused(missing: str) -> None:
    with pytest.raises(UsageError, match=missing):
        shard_of_environment({name: value for name, value in TORCHRUN.items() if name != missing})


def test_accelerate_that_started_one_process_of_several_is_noticed() -> None:
    assert is_launched_alone(ACCELERATE_ALONE)
    assert not is_launched_alone({**ACCELERATE_ALONE, **TORCHRUN})
    assert not is_launched_alone({**ACCELERATE_ALONE, **OPEN_MPI})
    assert not is_launched_alone({"ACCELERATE_MIXED_PRECISION": "no"})  # as with --num_processes 1
    assert not is_launched_alone({})


@pytest.mark.timeout(100)
def test_waiting_ends_when_all_have_ended_or_the_store_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    wait_for_others(Shard(0, 2), failed=True)  # no agent's store, so it does not even connect
    assert store.add("sohes/ended/0", 0) == 0
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    wait_for_others(Shard(0, 2), failed=False)
    assert store.add("sohes/ended/0", 0) == 1
    wait_for_others(Shard(1, 2), failed=True)
    assert store.add("sohes/ended/0", 0) == 2
    monkeypatch.setattr("sohes_cli.runs.shards._CONNECT_TIMEOUT", timedelta(seconds=1))
    del store
    wait_for_others(Shard(0, 3), failed=True)
