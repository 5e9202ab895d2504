"""Parses durations as people write them: 90s, 10m, 1h, 2d."""

from __future__ import annotations

import re

from sv_pipeline.errors import ConfigError

__all__ = ["parse_duration"]

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Parse a duration to seconds; raise ConfigError if the text is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if match is None:
        raise ConfigError(f"{text!r} is no duration.", remedy="Write 90s, 10m, 1h or 2d.")
    return float(match[1]) * _SECONDS[match[2]]
