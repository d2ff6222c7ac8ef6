"""The results as a picture: for each operation and case, how many times as fast as the reference each provider is, with
the conditions.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from sohes_benchmarks.report import conditions_line, shown_ratio
from sohes_benchmarks.rows import NAMES
from sohes_cli.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sohes_benchmarks.rows import Results, Row

__all__ = ["draw_figure"]

_INK, _FAINT = "#222222", "#d9d9d9"
_COLORS = {  # Okabe and Ito, told apart by everyone; ours in the two that stand out
    "cpu": "#0072b2",
    "sohes": "#0072b2",
    "triton": "#d55e00",
    "torch.compile": "#009e73",
    "heapq": "#e69f00",
    "pycocotools": "#cc79a7",
    "sohes, deformable_attention=reference": "#56b4e9",
    "sohes, ancestor_loss=reference": "#f0e442",
    "sohes, attention=torch": "#a6761d",
    "sohes, attention=plain": "#a6761d",
}
_OTHER_COLOR = "#555555"
_WIDTH, _BAR, _GAP, _TITLE, _MARGIN = 9.0, 0.16, 0.1, 0.34, 1.3  # inches, as are all heights below
_CAPTION_COLUMNS = 130

_Group = tuple[str, list["Row"]]


def draw_figure(path: Path, results: Results) -> None:
    """Draw the ratios and write the picture; rows without one are left out, and those that are wrong or failed are
    named as such.

    Args:
        path: the file, .png, .svg or .pdf; one that exists is replaced.
        results: what was measured.

    Raises:
        StoreError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels = [(name, rows) for name in NAMES if _groups(rows := [row for row in results.rows if row.op == name])]
    figure = Figure(dpi=120, layout="constrained")
    ax = figure.add_subplot()
    bottom, ticks = 0.0, []
    for name, rows in panels:
        bottom += _TITLE
        title = f"{name}, {rows[0].provider} = 1"
        place: Any = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
        ax.annotate(title, (0, bottom - 0.12), (-4, 0), fontsize=8, color=_INK, weight="bold", **place)
        for label, group in _groups(rows):
            ticks.append((bottom + _BAR * (len(group) - 1) / 2, label))
            bottom = _draw_group(ax, group, bottom) + _GAP
    figure.set_size_inches(_WIDTH, bottom + _MARGIN)
    drawn = [row for _, rows in panels for _, group in _groups(rows) for row in group]
    _prepare(ax, ticks, bottom, [row.ratio_to_reference or 1.0 for row in drawn])
    _draw_legend(figure, drawn)
    caption = "Every result was checked before it was timed. " + conditions_line(results)
    figure.supxlabel(textwrap.fill(caption, _CAPTION_COLUMNS), fontsize=7.5, color=_INK)
    try:
        figure.savefig(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}.", "Choose a folder that you may write to."
        ) from error


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """The bars of each case under its label: those of all providers but the first, to which ratios refer."""
    groups: dict[str, list[Row]] = {}
    modes, dtypes = {row.mode for row in rows}, {row.dtype for row in rows}
    for row in rows:
        label = ", ".join(
            [row.case, *([row.mode] if len(modes) > 1 else []), *([row.dtype] if len(dtypes) > 1 else [])]
        )
        groups.setdefault(label, []).append(row)
    drawn = {
        label: [r for r in rows[1:] if r.status in ("wrong", "failed") or r.ratio_to_reference]
        for label, rows in groups.items()
    }
    return [(label, kept) for label, kept in drawn.items() if kept]


def _draw_group(ax: Any, rows: Sequence[Row], top: float) -> float:
    """Draw one bar a row, downwards from `top`, and return where the last one ends."""
    for k, row in enumerate(rows):
        ratio, place = row.ratio_to_reference or 1.0, top + k * _BAR
        ax.barh(place, ratio - 1, _BAR * 0.88, left=1, color=_COLORS.get(row.provider, _OTHER_COLOR))
        ax.annotate(
            shown_ratio(row),
            (max(ratio, 1.0), place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=_INK,
        )
    return top + len(rows) * _BAR


def _prepare(ax: Any, ticks: Sequence[tuple[float, str]], bottom: float, ratios: Sequence[float]) -> None:
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    ax.set_ylim(max(bottom, _BAR), 0)
    ax.set_xscale("log")
    ax.set_xlim(0.8 * min([*ratios, 1.0]), 2 * max([*ratios, 2.0]))
    ax.axvline(1, color=_INK, linewidth=0.8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(axis="x", color=_FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.minorticks_off()
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.tick_params(labelsize=7.5, colors=_INK, length=0)
    ax.set_xlabel("times as fast on equal work", color=_INK, fontsize=9)


def _draw_legend(figure: Any, rows: Sequence[Row]) -> None:
    """A color a provider; what shares one stands together."""
    from matplotlib.patches import Patch

    names: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.provider for row in rows):
        names.setdefault(_COLORS.get(name, _OTHER_COLOR), []).append(name)
    handles = [Patch(color=color, label=", ".join(sharing)) for color, sharing in names.items()]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
