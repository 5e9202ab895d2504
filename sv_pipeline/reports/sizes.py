"""Widths of pictures in pixels. Draws nothing."""

from __future__ import annotations

from typing import Any

from sv_pipeline.arguments import is_whole, shown
from sv_pipeline.errors import InputError

__all__ = ["DIALOG_WIDTH", "DIALOG_WIDTH_OF_ROWS", "PUBLISHED_WIDTH", "parse_width"]

PUBLISHED_WIDTH = 1600
"""For files, notebooks and publications."""
DIALOG_WIDTH = 1150
"""Of a picture that a dialog of the Dagster UI shows without cutting it off."""
DIALOG_WIDTH_OF_ROWS = 1000
"""The same for a picture with more than two rows, so that a smaller screen shows all rows at once."""

NARROWEST, WIDEST = 300, 10_000


def parse_width(value: Any) -> int:
    """Parse the width of a picture in pixels; InputError if it cannot be used."""
    if is_whole(value) and NARROWEST <= value <= WIDEST:
        return int(value)
    raise InputError(
        f"cannot use {shown(value)} as the width of a picture.",
        remedy=f"Give a number of pixels from {NARROWEST} to {WIDEST}.",
    )
