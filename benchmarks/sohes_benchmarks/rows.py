"""Data of a benchmark: cases, one row per provider and case, and the results of a run, to JSON and back.

A row has a time only if its result was held against the reference in the same run and found right.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NAMES", "OPS", "STAGES", "Case", "Results", "Row", "Status"]

OPS = ("region_merging", "ancestor_loss", "deformable_attention", "mask_intersection", "run_intersection")
STAGES = ("explore", "evaluate", "train", "correct", "segment")
NAMES = OPS + STAGES
"""Names that `sohes bench` accepts."""

Status = Literal["ok", "wrong", "failed", "not run"]
Shapes: TypeAlias = "Mapping[str, tuple[int, ...]]"
_TIMES = ("median_ms", "p20_ms", "p80_ms", "wall_ms", "ratio_to_reference", "fraction_of_limit")
_DIGITS = 6  # significant ones of a stored number


@dataclass(frozen=True)
class Case:
    """Inputs of all providers of an operation.

    Args:
        op: the operation or stage, one of `NAMES`.
        name: the case in a few words, unique within operation, mode and type.
        mode: "forward", "forward+backward", or what a stage does.
        dtype: the inputs' element type.
        shapes: sizes of the inputs by name.
    """

    op: str
    name: str
    mode: str
    dtype: str
    shapes: Shapes


@dataclass(frozen=True)
class Row:
    """One provider on one case.

    Args:
        op: see `Case`, as are the next four.
        case: the case's name.
        mode: see `Case`.
        dtype: see `Case`.
        shapes: see `Case`.
        provider: "reference", a backend, or a peer by its name.
        status: "ok"; "wrong" if the result differs from the reference; "failed" if the provider raised; "not run" if it
            cannot run here.
        message: how far off, what was raised, or why it cannot run; empty for "ok".
        median_ms: milliseconds of a call on `clock`; None unless "ok", as are all numbers from a clock.
        p20_ms: the 20th percentile.
        p80_ms: the 80th percentile.
        wall_ms: median on the clock of the wall.
        clock: "processor", "wall" or "device".
        runs: calls that were timed.
        items: images that a call works on.
        ratio_to_reference: the reference's time for an image over this one's: 2 is twice as fast.
        peak_memory_bytes: of an operation on a GPU, device memory at its highest during a call, less what was held
            before. Of `train` and `segment` all that a process of its own held at most: device memory, or on a CPU
            resident memory less that of the libraries. Else None.
        compulsory_bytes: of a call: each input read once, each output written once.
        compulsory_flops: floating-point operations of a call that no implementation can leave out; 0 if there are none.
        fraction_of_limit: the time that the device's measured copy bandwidth and matrix rate allow, over the time
            taken; in (0, 1] unless caches help.
        steps_ms: a stage's medians by step, for one image.
        device: processor or GPU that did the work.
        torch: version of PyTorch.
        triton: version of Triton, empty if it is not installed.
        commit: of the source tree; see `conditions`.

    Raises:
        ValueError: if a row that is not "ok" has a number from a clock, or one that is "ok" has none.
    """

    op: str
    case: str
    mode: str
    dtype: str
    shapes: Shapes
    provider: str
    status: Status
    message: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    wall_ms: float | None = None
    clock: str = ""
    runs: int = 0
    items: int = 1
    ratio_to_reference: float | None = None
    peak_memory_bytes: int | None = None
    compulsory_bytes: int | None = None
    compulsory_flops: int | None = None
    fraction_of_limit: float | None = None
    steps_ms: Mapping[str, float] = field(default_factory=dict)
    device: str = ""
    torch: str = ""
    triton: str = ""
    commit: str = ""

    def __post_init__(self) -> None:
        if self.status == "ok" and self.median_ms is None:
            raise ValueError(f"the row of {self.provider} on {self.op} {self.case} is ok and has no time")
        if self.status != "ok" and any(getattr(self, name) is not None for name in _TIMES):
            raise ValueError(
                f"the row of {self.provider} on {self.op} {self.case} is {self.status!r} and must have no time"
            )

    @property
    def item_ms(self) -> float | None:
        """Milliseconds an image."""
        return None if self.median_ms is None else self.median_ms / self.items

    def to_json(self) -> dict[str, Any]:
        """The row as JSON holds it, numbers to six significant digits."""
        values = {name: _rounded(value) for name, value in asdict(self).items()}
        return values | {
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "steps_ms": {name: _rounded(value) for name, value in self.steps_ms.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Read what `to_json` wrote.

        Raises:
            TypeError: if a key is unknown or missing.
            ValueError: as the row itself.
        """
        shapes = {name: tuple(shape) for name, shape in data["shapes"].items()}
        return cls(**{**data, "shapes": shapes, "steps_ms": dict(data["steps_ms"])})


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


@dataclass
class Results:
    """Measurements of a run so far.

    Args:
        conditions: see `conditions`, with the number of threads, whether the run was a quick one, and notes on stages
            by their name.
        limits: see `Limits.to_json`; empty until they are measured.
        rows: in the order in which they were measured.
        is_complete: whether the run came to its end.
    """

    conditions: dict[str, object]
    limits: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    is_complete: bool = False

    @property
    def is_sound(self) -> bool:
        """True if no provider was wrong or failed."""
        return not any(row.status in ("wrong", "failed") for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `sohes bench --out` writes."""
        rows = [row.to_json() for row in self.rows]
        return {"conditions": self.conditions, "limits": self.limits, "is_complete": self.is_complete, "rows": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Results:
        """Read what `to_json` wrote."""
        return cls(
            dict(data["conditions"]),
            dict(data["limits"]),
            [Row.from_json(row) for row in data["rows"]],
            bool(data["is_complete"]),
        )
