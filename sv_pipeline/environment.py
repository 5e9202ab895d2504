"""Values of environment variables: numbers and switches, parsed in one way and refused with one message."""

from __future__ import annotations

import math
import os

from sv_pipeline.errors import ConfigError

__all__ = ["is_switched_on", "number_in", "whole_number_in"]

_ON = frozenset({"on", "true", "yes", "1"})
_OFF = frozenset({"off", "false", "no", "0"})


def number_in(variable: str, default: float, *, meaning: str, may_be_zero: bool = False) -> float:
    """Read a finite positive number from an environment variable.

    Parameters
    ----------
    variable
        Name of the environment variable.
    default
        The value if the variable is unset or blank.
    meaning
        What the number counts, in the plural, for the message: ``seconds``.
    may_be_zero
        Whether 0 is accepted as well.

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
    """Read a whole number from an environment variable; see `number_in`."""
    value = number_in(variable, default, meaning=meaning)
    if value != int(value):
        raise ConfigError(
            f"{variable} is {os.environ[variable]!r}.",
            remedy=f"Set it to a whole number of {meaning}, such as {default}.",
        )
    return int(value)


def is_switched_on(variable: str) -> bool:
    """Whether a switch is on, which is the default; ConfigError if the variable holds neither ``on`` nor ``off``."""
    text = os.environ.get(variable, "").strip().lower()
    if text not in _ON | _OFF | {""}:
        raise ConfigError(f"{variable} is {text!r}.", remedy="Set it to on or off.")
    return text not in _OFF
