"""Values that environment variables hold: numbers and switches, read in one way and refused with one message."""

from __future__ import annotations

import math
import os

from sv_pipeline.errors import ConfigError

__all__ = ["is_switched_on", "number_in", "whole_number_in"]

_ON = frozenset({"on", "true", "yes", "1"})
_OFF = frozenset({"off", "false", "no", "0"})


def number_in(variable: str, default: float, *, meaning: str, may_be_zero: bool = False) -> float:
    """A finite number above 0, or of at least 0 where that ``may_be_zero``.

    Parameters
    ----------
    variable
        Name of the environment variable; where it is not set or blank, the default counts.
    meaning
        What it is, in the plural, for the message: ``seconds``.

    Raises
    ------
    ConfigError
        If the variable holds anything else.
    """
    text = os.environ.get(variable, "")
    if not text.strip():
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf or (may_be_zero and value == 0)):
        raise ConfigError(f"{variable} is {text!r}.", remedy=f"Set it to a number of {meaning}, such as {default:g}.")
    return value


def whole_number_in(variable: str, default: int, *, meaning: str) -> int:
    """As `number_in`, for whole numbers."""
    value = number_in(variable, default, meaning=meaning)
    if value != int(value):
        raise ConfigError(
            f"{variable} is {os.environ[variable]!r}.",
            remedy=f"Set it to a whole number of {meaning}, such as {default}.",
        )
    return int(value)


def is_switched_on(variable: str) -> bool:
    """Whether a switch is on, as it is by default; ConfigError if the variable holds neither ``on`` nor ``off``."""
    text = os.environ.get(variable, "").strip().lower()
    if text not in _ON | _OFF | {""}:
        raise ConfigError(f"{variable} is {text!r}.", remedy="Set it to on or off.")
    return text not in _OFF
