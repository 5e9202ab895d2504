"""Errors of configurations: each names a field by its dotted path, and fields that may be meant."""

from __future__ import annotations

import difflib
import reprlib
import types
import typing
from collections.abc import Iterator

import pydantic

from sv_pipeline.errors import ConfigError
from sv_pipeline.redaction import redacted_value
from sv_pipeline.wording import counted

__all__ = ["SMALLEST", "describe_errors", "not_a_mapping", "unusable_fields"]

SMALLEST = """The smallest one is (docs/ingest.md describes all fields):
  graph_id: my_graph
  data_source: {WATERSHED: /data/my_watershed}
  source: {segmentation: /data/my_segmentation.npz}"""

_IN_OUR_WORDS = {
    "string_type": "a text is needed; put it in quotes if it is meant as one",
    "model_type": "this section needs fields, as 'name: value'; leave it out for the defaults",
    "tuple_type": "a list is needed, such as [8, 8, 40]",
}
"""Replacements for pydantic's messages that name one of our classes, or offer no remedy."""


def not_a_mapping(where: str, content: object, *, remedy: str) -> ConfigError:
    """Return the error about a file that does not hold named fields."""
    if content is None:
        return ConfigError(f"{where} is empty.", remedy=remedy)
    what = "a list" if isinstance(content, list) else f"the value {_shown(content)}"
    return ConfigError(f"{where} holds {what}, where fields are needed, each as 'name: value'.", remedy=remedy)


def unusable_fields(where: str, lines: list[str], *, remedy: str | None = None) -> ConfigError:
    """Return the error about fields that `describe_errors` has described, a line for each."""
    return ConfigError(f"{where}: {counted(len(lines), 'field')} cannot be used:\n" + "\n".join(lines), remedy=remedy)


def describe_errors(model: type[pydantic.BaseModel], error: pydantic.ValidationError) -> list[str]:
    """Return one line for each field that cannot be used."""
    known = [".".join(names) for names in _fields(model)]
    lines = []
    for found in error.errors(include_url=False):
        place = ".".join(str(part) for part in found["loc"]) or "(top)"
        if found["type"] == "extra_forbidden":
            lines.append(f"{place}: there is no such field{_meant(str(found['loc'][-1]), place, known)}")
        elif found["type"] == "missing":
            lines.append(f"{place}: this field is missing")
        elif found["type"] in _IN_OUR_WORDS:
            lines.append(f"{place}: {_IN_OUR_WORDS[found['type']]} (it is {_shown(found['input'])})")
        elif found["type"] == "value_error":  # raised by our own validators, whose messages are complete
            lines.append(f"{place}: {found['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{place}: {found['msg']} (it is {_shown(found['input'])})")
    return lines


def _shown(value: object) -> str:
    return reprlib.repr(redacted_value(value))


def _meant(name: str, place: str, known: list[str]) -> str:
    """Suggest fields with a similar name, from any section."""
    by_name: dict[str, list[str]] = {}
    for dotted in known:
        by_name.setdefault(dotted.rpartition(".")[2].lower(), []).append(dotted)
    close = [dotted for n in difflib.get_close_matches(name.lower(), by_name, 3, 0.7) for dotted in by_name[n]]
    # A field in the same section is the most likely one.
    close.sort(key=lambda dotted: dotted.rpartition(".")[0] != place.rpartition(".")[0])
    return f"; did you mean {' or '.join(close[:2])}?" if close else ""


def _fields(model: type[pydantic.BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        shown = field.alias or name
        yield (shown,)
        for part in _models(field.annotation):
            yield from ((shown, *below) for below in _fields(part))


def _models(annotation: object) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models(part)
