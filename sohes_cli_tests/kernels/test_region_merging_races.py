"""Compiled Triton region merging: exact merges and no data race between warps, on a PTX emulator (`ptx_machine`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from ptx_machine import ORDERS, MachineError, Program, Race, UnknownInstructionError, execute
from region_graphs import (
    DOWN_TO_THE_END,
    background,
    nearby_edges,
    normal,
    random_edges,
    sorted_pairs,
    star,
    with_zeros,
)
from sohes_kernels import grid_edges, merge_region_graph
from triton_support import compile_launches, needs_triton

BOUNDS = {"no region has bounds": {}, "every region has bounds": {"many": 0, "round_cost": 0}}


def complete(n_regions):
    """Every pair of regions."""
    return np.argwhere(np.triu(np.ones((n_regions, n_regions)), 1))


@dataclass(frozen=True)
class Case:
    """Graphs of one launch and what it is compiled for; `blocks` replace those of `launch_config`."""

    capability: int
    graphs: list
    blocks: dict = field(default_factory=dict)


PAIR = np.array([[0, 1]])
CASES = {
    "one channel": Case(80, [(normal(1, 12, 1), nearby_edges(2, 12, 3))]),
    "few channels": Case(90, [(normal(3, 2, 5), PAIR), (normal(4, 10, 5) + 0.4, complete(10))]),
    "ties and zeros": Case(80, [(with_zeros(np.round(normal(5, 15, 5)), 5), grid_edges(3, 5))]),
    "odd channels": Case(80, [(background(6, 37, 8, 1.0), star(7, 1)), (normal(7, 2, 37), PAIR)]),
    "long rows": Case(90, [(background(8, 300, 9, 0.5), grid_edges(3, 3))]),
    "rows of the model": Case(80, [(background(9, 768, 6, 0.5), grid_edges(2, 3))]),
    "more edges than a block": Case(
        90, [(normal(10, 14, 5) + 0.3, random_edges(11, 14, 150))], {"BLOCK_E": 64, "num_warps": 2}
    ),
    "small blocks": Case(80, [(normal(12, 17, 7) + 0.3, complete(17))], {"BLOCK_E": 128, "BLOCK_N": 4, "num_warps": 4}),
}
BEHIND_BARRIERS = [
    "tl.store(sums_ptr + a * C",
    "tl.store(norms_ptr + a, norm)",
    "tl.store(keys_ptr + edge, key",
    "best, bounds = _rescan(",
]


def launch(graphs, blocks):
    from sohes_kernels.region_merging.triton_kernel import merge_graphs_triton

    edges = [sorted_pairs(pairs) for _, pairs in graphs]
    sums = torch.from_numpy(np.concatenate([features for features, _ in graphs]).astype(np.float32))
    pairs = torch.from_numpy(np.concatenate([array[:, 0] << 16 | array[:, 1] for array in edges]).astype(np.int32))
    starts = [
        torch.tensor(np.cumsum([0, *map(len, arrays)])) for arrays in ([features for features, _ in graphs], edges)
    ]
    merge_graphs_triton(sums, pairs, *starts, torch.tensor(DOWN_TO_THE_END), most_edges=max(map(len, edges)), **blocks)


@cache
def compiled(name):
    """The launches of a case, in order, each with its kernel as a program of the machine."""
    case = CASES[name]
    launches = compile_launches(launch, case.graphs, case.blocks, capability=case.capability)
    return [(launched, Program(launched.ptx)) for launched in launches]


def merged(launches, parameters, order="ascending"):
    """Execute launches in sequence on shared arrays; return the arrays by parameter, races and barriers."""
    arrays: dict[str, np.ndarray] = {}
    races: list[Race] = []
    barriers: set[str] = set()
    for launched, program in launches:
        arguments = {
            name: arrays.setdefault(name, value.copy())
            if isinstance(value, np.ndarray)
            else parameters.get(name, value)
            for name, value in launched.arguments.items()
        }
        for number in range(launched.grid[0]):
            try:
                outcome = execute(
                    program, arguments, shared_bytes=launched.shared_bytes, program_id=number, order=order, seed=number
                )
            except UnknownInstructionError as error:  # of another version of Triton
                pytest.skip(f"{launched.name} has an {error}")
            races += outcome.races
            barriers |= outcome.barriers
    return arrays, races, barriers


@cache
def merged_case(name, bounds, order):
    return merged(compiled(name), BOUNDS[bounds], order)


def is_exact(arrays, graphs):
    """True if merges, similarities and counts equal the CPU path's, bit for bit."""
    row = 0
    for counts, (features, edges) in zip(arrays["counts_ptr"], graphs, strict=True):
        expected = merge_region_graph(features, edges, DOWN_TO_THE_END, backend="cpu")
        place = slice(row, row + len(expected.pairs))
        pairs = np.stack([arrays["merged_ptr"][place] >> 16, arrays["merged_ptr"][place] & 0xFFFF], axis=1)
        if counts.tolist() != [len(features) - 1 - int(partition.max()) for partition in expected.partitions]:
            return False
        if (
            pairs.tolist() != expected.pairs.tolist()
            or arrays["similarities_ptr"][place].tobytes() != expected.similarities.tobytes()
        ):
            return False
        row += len(features)
    return True


def lines_of_barriers(statement=""):
    """Source lines of the kernel with a barrier right before a statement, or with any barrier, as file:line."""
    path = Path(find_spec("sohes_kernels.region_merging.triton_kernel").origin)
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = enumerate(pairwise(lines), start=1)
    return {
        f"{path.name}:{n}"
        for n, (line, after) in pairs
        if line.startswith("tl.debug_barrier()") and after.startswith(statement)
    }


def goes_wrong(launches, parameters, graphs):
    """True if the machine finds an error, a race or a wrong result."""
    try:
        arrays, races, _ = merged(launches, parameters)
    except MachineError:
        return True
    return bool(races) or not is_exact(arrays, graphs)


@needs_triton
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", CASES)
def test_warps_do_not_race_and_merges_are_exact(name, bounds, order):
    arrays, races, _ = merged_case(name, bounds, order)
    assert races == []
    assert is_exact(arrays, CASES[name].graphs)


@needs_triton
@pytest.mark.parametrize("statement", BEHIND_BARRIERS)
def test_a_barrier_that_is_missed_is_found(statement):
    *others, (launched, program) = compiled("few channels")
    lines = lines_of_barriers(statement)
    barriers = [barrier for barrier in program.barriers if barrier.source in lines]
    assert {barrier.source for barrier in barriers} == lines != set()
    launches = [*others, (launched, program.without(barriers))]
    assert any(goes_wrong(launches, parameters, CASES["few channels"].graphs) for parameters in BOUNDS.values())


@needs_triton
@pytest.mark.parametrize(
    ("statement", "parameters", "raced"),
    [
        ("tl.store(sums_ptr + a * C", {}, {"sums_ptr"}),
        ("best, bounds = _rescan(", {"many": 0, "round_cost": 0}, {"pairs_ptr", "keys_ptr"}),
    ],
)
def test_a_race_is_named(statement, parameters, raced):
    *others, (launched, program) = compiled("more edges than a block")
    lines = lines_of_barriers(statement)
    program = program.without(barrier for barrier in program.barriers if barrier.source in lines)
    _, races, _ = merged([*others, (launched, program)], parameters)
    assert raced <= {race.array for race in races}
    assert all(race.writes for race in races)


@needs_triton
def test_every_barrier_of_the_source_is_reached():
    reached = set().union(*(merged_case(name, bounds, "ascending")[2] for name in CASES for bounds in BOUNDS))
    assert lines_of_barriers() <= reached
