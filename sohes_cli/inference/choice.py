"""The way to labels that `sohes segment` takes: the one that is named, or else the best that is here.

runs/correct, runs/instruct, the model that ships with the package, phase 1 on each photograph: the first that there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.model.location import HOW_TO_TRAIN, NO_MODEL, has_model, model_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sohes_cli.inference.methods import Method

__all__ = ["check_method", "choose_method"]

_NO_SETTINGS = ("checkpoint", "size", "batch_size", "device")


def check_method(kind: str | None, flags: Mapping[str, Any]) -> bool:
    """Check the choice of a method and its flags as `choose_method` does, without importing PyTorch.

    Args:
        kind: `model`, `explore`, or None for phase 1 where no model is named and there is none by default.
        flags: what only a model understands, as `ModelMethod.load` takes it; None for what was not given.

    Returns:
        True if a model is chosen.

    Raises:
        UsageError: if phase 1 is asked for with flags of a model, or a flag is wrong.
        SohesError: if there is no model, and it or such a flag is asked for.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if kind == "explore":
        if given:
            raise UsageError(
                f"{shown}: --method explore has no model to use it.",
                "Leave it out; `sohes explore` has settings of its own.",
            )
        return False
    if kind == "model" or "checkpoint" in given or has_model():
        SegmentConfig(**{name: value for name, value in given.items() if name not in _NO_SETTINGS})
        model_file(given.get("checkpoint"))
        return True
    if given:
        raise SohesError(
            f"{shown}: there is no trained model to use it, for {NO_MODEL}.",
            f"Train one ({HOW_TO_TRAIN}), give one with --checkpoint, or leave it out: phase 1 then labels "
            "each photograph by itself.",
        )
    return False


def choose_method(kind: str | None, flags: Mapping[str, Any]) -> Method:
    """Load the method of `sohes segment`; arguments and errors as of `check_method`."""
    takes_model = check_method(kind, flags)
    from sohes_cli.inference.methods import ExploreMethod, ModelMethod

    if takes_model:
        return ModelMethod.load(**{name: value for name, value in flags.items() if value is not None})
    if kind == "explore":
        return ExploreMethod()
    return ExploreMethod(
        description=f"Phase 1 labels each photograph by itself, for there is no trained model: {NO_MODEL}; "
        f"{HOW_TO_TRAIN} make one."
    )
