"""The way to labels that `sohes segment` takes: the one that is named, or else the best that is here.

runs/correct, runs/instruct, the model that ships with the package, phase 1 on each photograph: the first that there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.inference.methods import ExploreMethod, ModelMethod
from sohes_cli.model.location import HOW_TO_TRAIN, NO_MODEL, has_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sohes_cli.inference.methods import Method

__all__ = ["choose_method"]


def choose_method(kind: str | None, flags: Mapping[str, Any]) -> Method:
    """The way to labels.

    Args:
        kind: `model`, `explore`, or None for phase 1 where no model is named and there is none by default.
        flags: what only a model understands, as `ModelMethod.load` takes it; None for what was not given.

    Raises:
        UsageError: if phase 1 is asked for with flags of a model.
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
        return ExploreMethod()
    if kind == "model" or "checkpoint" in given or has_model():
        return ModelMethod.load(**given)
    if given:
        raise SohesError(
            f"{shown}: there is no trained model to use it, for {NO_MODEL}.",
            f"Train one ({HOW_TO_TRAIN}), give one with --checkpoint, or leave it out: phase 1 then labels each photograph by itself.",
        )
    return ExploreMethod(
        description=f"Phase 1 labels each photograph by itself, for there is no trained model: {NO_MODEL}; {HOW_TO_TRAIN} make one."
    )
