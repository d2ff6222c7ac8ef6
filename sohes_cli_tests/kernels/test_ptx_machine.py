"""The machine that executes PTX: results of small programs, and that what it looks for is found."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from ptx_machine import (
    ORDERS,
    DivergenceError,
    EndlessProgramError,
    MemoryAccessError,
    Program,
    UnknownInstructionError,
    execute,
)

N_THREADS = 64
FRAME = """
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u32 k_param_1
)
.reqntid 64
{{
	.reg .pred %p<9>;
	.reg .b32 %r<19>;
	.reg .b64 %rd<19>;
	.loc 1 10 0
	ld.param.b64 %rd1, [k_param_0];
	ld.param.b32 %r9, [k_param_1];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 4;
	add.s64 %rd3, %rd1, %rd2;
	xor.b32 %r2, %r1, 63;
	mul.wide.u32 %rd4, %r2, 4;
	add.s64 %rd5, %rd1, %rd4;
	{body}
	ret;
}}
	.file 1 "somewhere/kernel.py"
"""
REVERSE = """
	.loc 1 20 0
	ld.global.b32 {{ %r3 }}, [ %rd3 + 0 ];
	{barrier}
	.loc 1 21 0
	st.global.b32 [ %rd5 + 0 ], {{ %r3 }};
"""


def run(body, values=None, **options):
    values = np.arange(N_THREADS, dtype=np.int32) if values is None else values
    return values, execute(Program(FRAME.format(body=body)), {"values": values, "n": 7}, **options).races


def computed(instructions, *operands):
    """One number that instructions make, as 64 bits in %rd9, of operands with 64 bits in %rd10, %rd11, and so on."""
    values = np.array([0, *operands])
    loads = "\n".join(f"ld.global.b64 %rd{10 + k}, [%rd1+{8 * (k + 1)}];" for k in range(len(operands)))
    guarded = "setp.eq.s32 %p1, %r1, 0;\n@%p1 st.global.b64 [%rd1], %rd9;"
    run(f"{loads}\n{instructions}\nbar.sync 0;\n{guarded}", values)
    return values[0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_between_loads_and_stores_leaves_no_race(order):
    values, races = run(REVERSE.format(barrier="bar.sync 0;"), order=order)
    assert values.tolist() == list(range(N_THREADS))[::-1]
    assert races == []


@pytest.mark.parametrize("order", ORDERS)
def test_a_race_is_found_in_every_order(order):
    values, (race,) = run(REVERSE.format(barrier=""), order=order)
    assert values.tolist() != list(range(N_THREADS))[::-1]
    assert (race.array, race.words) == ("values", tuple(range(N_THREADS)))
    assert (race.writes, race.reads) == (("kernel.py:21",), ("kernel.py:20",))


def test_one_barrier_is_left_out():
    program = Program(FRAME.format(body=REVERSE.format(barrier="bar.sync 0;")))
    assert [barrier.source for barrier in program.barriers] == ["kernel.py:20"]
    without = program.without(program.barriers)
    assert without.barriers == []
    outcomes = [execute(given, {"values": np.zeros(N_THREADS, np.int32), "n": 0}) for given in (program, without)]
    assert [len(outcome.races) for outcome in outcomes] == [0, 1]
    assert [outcome.barriers for outcome in outcomes] == [{"kernel.py:20"}, set()]


def test_two_warps_that_store_one_word_race_even_with_equal_values():
    _, (race,) = run("st.global.b32 [%rd1], %r9;")
    assert (race.words, race.reads) == ((0,), ())


def test_copies_in_shared_memory_are_no_race():
    values, races = run(
        "st.shared.b32 [global_smem+4], %r9;\nbar.sync 0;\n"
        "ld.shared.b32 %r3, [global_smem+4];\nst.global.b32 [%rd3], %r3;",
        shared_bytes=8,
    )
    assert (values == 7).all()
    assert races == []


def test_a_race_in_shared_memory():
    shift = "shl.b32 %r4, %r1, 2;\nshl.b32 %r5, %r2, 2;\nst.shared.b32 [%r4], %r1;"
    _, races = run(shift + "\nld.shared.b32 %r3, [%r5];", shared_bytes=256)
    assert {race.array for race in races} == {"global_smem"}
    _, races = run(shift + "\nbar.sync 0;\nld.shared.b32 %r3, [%r5];", shared_bytes=256)
    assert races == []


def test_warps_at_different_barriers():
    body = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra $L_1;\n.loc 1 30 0\nbar.sync 0;\n$L_1:\n.loc 1 31 0\nbar.sync 0;"
    with pytest.raises(DivergenceError, match=r"kernel.py:30.*kernel.py:31"):
        run(body)


def test_a_barrier_that_a_warp_never_reaches():
    with pytest.raises(DivergenceError):
        run("setp.lt.u32 %p1, %r1, 32;\n@%p1 bra $L_1;\nbar.sync 0;\n$L_1:")


def test_threads_of_a_warp_that_branch_apart():
    with pytest.raises(DivergenceError, match="16 of the threads of warp 0"):
        run("setp.lt.u32 %p1, %r1, 16;\n@%p1 bra $L_1;\nbar.sync 0;\n$L_1:\nbar.sync 0;")


@pytest.mark.parametrize("address", ["%rd3+4", "%rd1+252", "%rd3+2"])
def test_no_access_outside_of_the_arrays_or_askew(address):
    accessed = f"ld.global.b{'64' if address == '%rd1+252' else '32'} %rd7, [{address}];"
    with pytest.raises(MemoryAccessError, match=r"ld.global"):
        run(accessed)


def test_different_values_for_one_word():
    with pytest.raises(MemoryAccessError, match="different values"):
        run("st.global.b32 [%rd1], %r1;")


def test_an_endless_program():
    with pytest.raises(EndlessProgramError):
        run("$L_1:\nbra.uni $L_1;")


@pytest.mark.parametrize(
    "instruction",
    [
        "vote.sync.any.pred %p1, %p2, -1;",
        "add.sat.s32 %r3, %r1, %r2;",
        "mul.hi.u32 %r3, %r1, %r2;",
        "ld.global.nc.b32 %r3, [%rd3];",
        "cvt.rzi.s32.f32 %r3, %r4;",
        "shfl.sync.bfly.b32 %r3, %r1, 1, 7175, -1;",
        "bar.arrive 0, 64;",
        "@%p1 add.s32 %r3, %r1, %r2;",
    ],
)
def test_what_the_machine_lacks_is_named(instruction):
    with pytest.raises(UnknownInstructionError, match=re.escape(instruction.removeprefix("@%p1 ").split()[0])):
        run(instruction)


def test_uninitialized_registers_hold_noise():
    values, _ = run("st.global.b32 [%rd3], %r15;", seed=1)
    again, _ = run("st.global.b32 [%rd3], %r15;", seed=2)
    assert len(set(values)) > 32
    assert (values != again).any()


def bits(x):
    return int(np.float64(x).view(np.int64))


@pytest.mark.parametrize(
    ("instructions", "operands", "expected"),
    [
        ("add.s64 %rd9, %rd10, %rd11;", (2**63 - 1, 1), -(2**63)),
        ("shr.s64 %rd9, %rd10, 33;", (-(2**40),), -(2**7)),
        ("shl.b64 %rd9, %rd10, 64;", (5,), 0),
        ("cvt.u32.u64 %r3, %rd10;\ncvt.s64.s32 %rd9, %r3;", (2**32 - 3,), -3),
        ("cvt.u32.u64 %r3, %rd10;\nbfe.u32 %r4, %r3, 16, 15;\ncvt.u64.u32 %rd9, %r4;", (0x9ABC1234,), 0x1ABC),
        ("cvt.u32.u64 %r3, %rd10;\ndiv.s32 %r4, %r3, -2;\ncvt.s64.s32 %rd9, %r4;", (-7,), 3),
        ("cvt.u32.u64 %r3, %rd10;\nrem.s32 %r4, %r3, 4;\ncvt.s64.s32 %rd9, %r4;", (-7,), -3),
        ("mov.b64 {%r3, %r4}, %rd10;\nmov.b64 %rd9, {%r4, %r3};", (3 + (4 << 32),), 4 + (3 << 32)),
        (
            "mov.b64 {_, %r4}, %rd10;\nprmt.b32 %r5, %r4, %r9, 0x5410U;\ncvt.u64.u32 %rd9, %r5;",
            (0x12345678 << 32,),
            0x75678,
        ),
        ("shfl.sync.idx.b32 %r3, %r1, 5, 31, -1;\ncvt.u64.u32 %rd9, %r3;", (), 5),
        (
            "shfl.sync.up.b32 %r3, %r1, 1, 0, -1;\nredux.sync.add.s32 %r4, %r3, -1;\ncvt.u64.u32 %rd9, %r4;",
            (),
            31 * 30 // 2,
        ),
        ("mov.b32 %r3, -1;\nredux.sync.max.u32 %r4, %r1, %r3;\ncvt.u64.u32 %rd9, %r4;", (), 31),
        ("setp.gt.s64 %p2, %rd10, %rd11;\nselp.b64 %rd9, %rd10, %rd11, %p2;", (-5, -9), -5),
        ("max.f64 %rd9, %rd10, %rd11;", (bits(np.nan), bits(2.5)), bits(2.5)),
        ("mul.f64 %rd9, %rd10, 0d4000000000000000;", (bits(0.1),), bits(0.2)),
        ("cvt.rn.f32.f64 %r3, %rd10;\ncvt.f64.f32 %rd9, %r3;", (bits(0.1),), bits(np.float32(0.1))),
    ],
)
def test_numbers(instructions, operands, expected):
    assert computed(instructions, *operands) == expected


def test_fused_products_are_rounded_once():
    rng = np.random.default_rng(0)
    for a, b in rng.normal(size=(20, 2)):
        c = -a * b  # what remains is what the product was rounded by
        exact = float(Fraction(a) * Fraction(b) + Fraction(c))
        assert computed("fma.rn.f64 %rd9, %rd10, %rd11, %rd12;", bits(a), bits(b), bits(c)) == bits(exact)


def test_approximate_roots_are_off_by_at_most_a_unit():
    roots = np.abs(np.random.default_rng(1).normal(size=N_THREADS)).astype(np.float32)
    body = "ld.global.b32 %r3, [%rd3];\nsqrt.approx.ftz.f32 %r4, %r3;\nst.global.b32 [%rd3], %r4;"
    values, _ = run(body, roots.copy())
    distances = np.abs(values.view(np.int32) - np.sqrt(roots).view(np.int32))
    assert set(distances.tolist()) == {0, 1}


def test_matrices_return_as_they_were_stored():
    body = """
	and.b32 %r10, %r1, 32;
	shl.b32 %r10, %r10, 4;
	and.b32 %r11, %r1, 15;
	shl.b32 %r11, %r11, 4;
	add.s32 %r12, %r10, %r11;
	add.s32 %r13, %r1, 100;
	stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r12], {%r1, %r13};
	ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r14, %r15}, [%r12];
	sub.s32 %r16, %r15, %r14;
	st.global.b32 [%rd3], %r16;
    """
    values, races = run(body, shared_bytes=1024)
    assert races == []
    assert (values == 100).all()
