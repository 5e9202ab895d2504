"""What a command that is stopped with Ctrl-C leaves behind, and what its user can do next."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sv_pipeline.errors import notes_of

__all__ = ["CONTINUE", "if_stopped"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CONTINUE = "Finished work is kept. Run the same command again to continue."


def if_stopped(advice: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let a command say ``advice`` when it is stopped, unless the work that it did knows better.

    A command without this decorator only reads, and leaves nothing behind.
    """

    def decorate(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(command)
        def stoppable(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            try:
                return command(*arguments, **options)
            except KeyboardInterrupt as stop:
                if not notes_of(stop):
                    stop.add_note(advice)
                raise

        return stoppable

    return decorate
