"""JSON that other people and programs write, read with care: UTF-8, no name twice in one object. Knows no file."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["read_json"]


def read_json(content: bytes | str) -> Any:
    """Plain values of a JSON text.

    Raises
    ------
    ValueError
        If it is no JSON, not UTF-8, too deep, or a name stands twice in one object: readers differ in which of the
        two values they take.
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
        raise ValueError(f"{twice!r} stands twice in one object")
    return found
