"""Parts of a benchmark: a plan of the run, and for each case a workload with competing providers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sohes_benchmarks.rows import Case

__all__ = ["Benchmark", "Device", "Plan", "Provider", "Workload"]

Device = Literal["cpu", "cuda"]
_QUICK_SECONDS, _FULL_SECONDS = 0.25, 5.0
_QUICK_ROUNDS, _FULL_ROUNDS = 2, 5


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Args:
        names: operations and stages in order, of `rows.NAMES`.
        quick: small cases and short times.
        device: where the inputs of the operations are.
        threads: of PyTorch, BLAS, OpenCV and numba; with one, a host's times are those of the processor's clock.
        deadline_s: seconds after which no further case is begun; None for no end.
    """

    names: tuple[str, ...]
    quick: bool
    device: Device
    threads: int
    deadline_s: float | None = None

    @property
    def seconds(self) -> float:
        """Time spent on the timed calls of one provider, which are at least one."""
        return _QUICK_SECONDS if self.quick else _FULL_SECONDS

    @property
    def rounds(self) -> int:
        """Least number of rounds for calls timed in turns."""
        return _QUICK_ROUNDS if self.quick else _FULL_ROUNDS


@dataclass(frozen=True)
class Provider:
    """One way to compute an operation.

    Args:
        name: "reference", a backend, or a peer by its name.
        prepare: makes the call that is timed, and compiles what must be compiled.
        obstacle: why it cannot run here, or an empty string.
        device: where it computes, and so on which clock its time is read.
        items: images that a call works on.
        evidence: makes the result that is checked; None for that of the call itself.
        steps: milliseconds an image by step over the calls so far, for a stage; None for an operation.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    obstacle: str = ""
    device: Device = "cpu"
    items: int = 1
    evidence: Callable[[], Any] | None = None
    steps: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Workload:
    """A case with its inputs, ready to run.

    Args:
        case: what is computed.
        providers: the reference first, to which ratios refer.
        difference: tells how far a result (first argument) is from the truth (second), or returns an empty string if it
            is right.
        truth: computes the truth; None if the first provider's result is.
        compulsory_bytes: see `Row`, for one image.
        compulsory_flops: see `Row`, for one image.
        in_turns: whether the providers are timed in turns, as is best for calls that take long.
        memory: bytes that a provider, given by its name, needs at most in a process of its own; None to measure what a
            call needs on a GPU.
        close: frees what the inputs hold besides memory.
    """

    case: Case
    providers: tuple[Provider, ...]
    difference: Callable[[Any, Any], str]
    truth: Callable[[], Any] | None = None
    compulsory_bytes: int = 0
    compulsory_flops: int = 0
    in_turns: bool = False
    memory: Callable[[str], int | None] | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Benchmark:
    """An operation or stage: its cases under a plan, and the workload of each, made only when its turn comes.

    Args:
        name: of `rows.NAMES`.
        cases: those of a plan.
        workload: of a case.
        note: what a reader must know to compare the providers; empty if nothing.
    """

    name: str
    cases: Callable[[Plan], Sequence[Case]]
    workload: Callable[[Case, Plan], Workload]
    note: str = ""
