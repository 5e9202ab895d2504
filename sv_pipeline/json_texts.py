"""JSON written by other people and programs, parsed strictly: UTF-8, no duplicate keys. Knows no file."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["read_json"]


def read_json(content: bytes | str) -> Any:
    """Parse a JSON text into plain values.

    Raises
    ------
    ValueError
        If the text is not JSON, not UTF-8, or nested too deeply, or if a key appears twice in one object: parsers
        differ in which of the two values they use.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    try:
        return json.loads(text, object_pairs_hook=_each_name_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice in one object")
    return found
