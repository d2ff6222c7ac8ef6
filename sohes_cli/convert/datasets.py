"""The data sets that can be converted: for each its splits and the function that opens it.

A data set's module is imported when it is asked for, so that converting one does not load what only another needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sohes_cli.convert.ground_truth import Dataset

__all__ = ["Converter", "DatasetName", "converter"]


class DatasetName(StrEnum):
    """The data sets by their names on the command line."""

    coco = "coco"
    lvis = "lvis"
    ade20k = "ade20k"
    entityseg = "entityseg"
    sa1b = "sa1b"
    partimagenet = "partimagenet"
    paco = "paco"
    bsds500 = "bsds500"


@dataclass(frozen=True)
class Converter:
    """How one data set is read.

    Args:
        splits: the names of its splits, the default first.
        open: makes a `Dataset` of its folder and the name of a split; raises DatasetError if the folder is not laid out as its authors
            distribute it.
    """

    splits: tuple[str, ...]
    open: Callable[[Path, str], Dataset]


def converter(name: DatasetName) -> Converter:
    """The converter of a data set, whose module is imported now."""
    match name:
        case DatasetName.coco:
            from sohes_cli.convert import coco

            return Converter(coco.SPLITS, coco.open_coco)
        case DatasetName.lvis:
            from sohes_cli.convert import lvis

            return Converter(lvis.SPLITS, lvis.open_lvis)
        case DatasetName.ade20k:
            from sohes_cli.convert import ade20k

            return Converter(ade20k.SPLITS, ade20k.open_ade20k)
        case DatasetName.entityseg:
            from sohes_cli.convert import entityseg

            return Converter(entityseg.SPLITS, entityseg.open_entityseg)
        case DatasetName.sa1b:
            from sohes_cli.convert import sa1b

            return Converter(sa1b.SPLITS, sa1b.open_sa1b)
        case DatasetName.partimagenet:
            from sohes_cli.convert import partimagenet

            return Converter(partimagenet.SPLITS, partimagenet.open_partimagenet)
        case DatasetName.paco:
            from sohes_cli.convert import paco

            return Converter(paco.SPLITS, paco.open_paco)
        case DatasetName.bsds500:
            from sohes_cli.convert import bsds500

            return Converter(bsds500.SPLITS, bsds500.open_bsds500)
