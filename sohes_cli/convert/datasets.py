"""Data sets that can be converted, by their names on the command line."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sohes_cli.convert.ground_truth import Converter

__all__ = ["DatasetName", "converter"]


class DatasetName(StrEnum):
    """Names of the data sets."""

    coco = "coco"
    lvis = "lvis"
    ade20k = "ade20k"
    entityseg = "entityseg"
    sa1b = "sa1b"
    partimagenet = "partimagenet"
    paco = "paco"
    bsds500 = "bsds500"


def converter(name: DatasetName) -> Converter:
    """Return the converter of a data set; modules load here, so that `sohes --help` stays fast."""
    from sohes_cli.convert import ade20k, bsds500, json_datasets, partimagenet, sa1b

    return {
        DatasetName.coco: json_datasets.COCO,
        DatasetName.lvis: json_datasets.LVIS,
        DatasetName.ade20k: ade20k.ADE20K,
        DatasetName.entityseg: json_datasets.ENTITYSEG,
        DatasetName.sa1b: sa1b.SA1B,
        DatasetName.partimagenet: partimagenet.PARTIMAGENET,
        DatasetName.paco: json_datasets.PACO,
        DatasetName.bsds500: bsds500.BSDS500,
    }[name]
