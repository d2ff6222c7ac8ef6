"""The steps of a run, one after the other, until the last one or until a signal says to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sohes_cli.explore.interruption import StopRequest
from sohes_cli.training.distribution import any_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from accelerate import Accelerator

__all__ = ["is_due", "take_steps"]

B = TypeVar("B")


def is_due(step: int, steps: int, every: int) -> bool:
    """Whether what is done every so many steps, and after the last one, is done after `step` of `steps`."""
    return step == steps or step % every == 0


def take_steps(
    batches: AbstractContextManager[Iterator[B]], take: Callable[[B], object], save: Callable[[], object], accelerator: Accelerator
) -> None:
    """Take a step with each batch; after a signal to any of the processes save and stop, after a second one stop at once.

    Args:
        batches: those of the steps that are left, from `sohes_cli.training.loading.open_batches`; opened here.
        take: takes a step.
        save: writes what a later run needs to go on; called by all processes together.
        accelerator: the process group.

    Raises:
        SohesError: whatever `take`, `save` and the batches raise.
    """
    with StopRequest("Stopping after this step; Ctrl-C again stops at once.") as stop:
        try:
            with batches as opened:
                for batch in opened:
                    take(batch)
                    if any_process(accelerator, stop.is_set()):
                        save()
                        return
        except KeyboardInterrupt:  # the second Ctrl-C: steps since the newest checkpoint are lost
            return
