"""YAML files written by people, parsed strictly: no duplicate keys, and limits on depth and size.

Knows no field of any file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from sv_pipeline.errors import ConfigError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "read_yaml"]

EXAMPLE = "Name the YAML file of a dataset; docs/ingest.md has an example."
MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000
"""Largest number of values in a file after its aliases are expanded."""

_LEADING_ZEROS = re.compile(r"[-+]?0[0-9_]*[1-9][0-9_]*")


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that appears twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct the mapping; keys that ``<<`` merges into it may be overridden."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not a string", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice in one mapping", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Construct a whole number; refuse ``010``, which YAML reads as 8 against the writer's intention."""
    text = str(loader.construct_scalar(node))
    if _LEADING_ZEROS.fullmatch(text):
        raise yaml.constructor.ConstructorError(
            None, None, f"{text} is octal in YAML: write it without leading zeros, or in quotes", node.start_mark
        )
    return int(loader.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file as plain values.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, or exceeds the limits; the message names the line if there is one.
    """
    text = _read_text(path)
    try:
        _check_size(text, path)
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_where(error)}.", remedy=_remedy(text, error)) from error
    except (ValueError, OverflowError, RecursionError) as error:
        # Dates that do not exist, numbers with more digits than Python converts, and the like.
        raise ConfigError(f"{path} holds a value that cannot be read: {error}.", remedy="Correct it.") from error


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}.", remedy=EXAMPLE) from error
    except ValueError as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}.", remedy=EXAMPLE) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_BYTES >> 20} MB, so it is not a configuration.", remedy="Check the path."
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file: {error}.", remedy="Save it as UTF-8.") from error


def _check_size(text: str, path: str | os.PathLike[str]) -> None:
    """Refuse a text that would take unbounded time or memory once its aliases are expanded; parses events only."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_event():
            event: yaml.Event = loader.get_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes and event.anchor in [anchor for anchor, _ in open_nodes]:
                    raise ConfigError(
                        f"{path}{_line(event)}: *{event.anchor} refers to itself.", remedy="Write the value out."
                    )
                total += sizes.get(str(event.anchor), 1)
            elif isinstance(event, yaml.CollectionStartEvent):
                total += 1
                open_nodes.append((event.anchor, total))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = total - before + 1
            elif isinstance(event, yaml.ScalarEvent):
                total += 1
            if len(open_nodes) > MAX_DEPTH or total > MAX_VALUES:
                limit = f"{MAX_DEPTH} levels" if len(open_nodes) > MAX_DEPTH else f"{MAX_VALUES:,} values"
                raise ConfigError(
                    f"{path}{_line(event)}: this is more than {limit}, too much for a configuration.",
                    remedy="See docs/ingest.md.",
                )
    finally:
        loader.dispose()


def _line(event: yaml.Event) -> str:
    return "" if event.start_mark is None else f", line {event.start_mark.line + 1}"


def _where(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem is None:
        return str(error)
    if context := getattr(error, "context", None):
        problem = f"{context}, {problem}"
    return str(problem) if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _remedy(text: str, error: yaml.YAMLError) -> str | None:
    mark = getattr(error, "problem_mark", None)
    lines = text.splitlines()
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]:
        return "Indent with spaces: YAML takes no tabs."
    return None
