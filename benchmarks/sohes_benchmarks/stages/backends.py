"""Backends and precision of the network and its losses during a measurement.

The package itself always takes the fastest that can run. To see what each is worth, the operations are replaced where
the model and the losses look them up, in this process and inside of a block only.
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import sohes_cli.model.attention
import sohes_cli.model.deformable
import sohes_cli.training.losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sohes_benchmarks.workload import Device

__all__ = ["DTYPES", "PRECISIONS", "chosen_backends", "variant_name", "variant_obstacle"]

DTYPES: dict[Device, str] = {"cpu": "float32", "cuda": "bfloat16"}
"""Precision of our network and the peer's by device."""

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
"""The same as our settings call it."""

_PLACES = {
    "deformable_attention": (sohes_cli.model.deformable, "deformable_attention"),
    "ancestor_loss": (sohes_cli.training.losses, "ancestor_loss"),
    "attention": (sohes_cli.model.attention, "attend"),
}


@contextmanager
def chosen_backends(backends: Mapping[str, str]) -> Iterator[None]:
    """Let operations take the backends given by name; others choose as always.

    Args:
        backends: of `deformable_attention`, `ancestor_loss` and the query decoder's `attention`.
    """
    with ExitStack() as stack:
        for operation, backend in backends.items():
            module, name = _PLACES[operation]
            stack.enter_context(patch.object(module, name, partial(getattr(module, name), backend=backend)))
        yield


def variant_name(backends: Mapping[str, str]) -> str:
    """The provider that takes these backends."""
    return ", ".join(["sohes", *(f"{operation}={backend}" for operation, backend in backends.items())])


def variant_obstacle(backends: Mapping[str, str], device: Device) -> str:
    """Why a variant says nothing here, or an empty string."""
    if device == "cuda" and "attention" in backends and importlib.util.find_spec("xformers") is None:
        return "xformers is not installed, so it is what sohes takes anyway"
    return ""
