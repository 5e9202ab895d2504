"""The schema of a pydantic model for Dagster's launchpad: its fields with types, documentation and defaults.

The schema documents the model and does not replace its validation: keys that it does not know are accepted, and
defaults are only described, so that a configuration means the same in a launchpad as in a file.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

import dagster as dg
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["schema_of"]

SCALARS: dict[type, Any] = {bool: bool, int: int, float: float, str: str}


def schema_of(model: type[BaseModel]) -> dg.Permissive:
    """Return the schema of a model; each field is named by its alias."""
    return dg.Permissive({field.alias or name: _field(field) for name, field in model.model_fields.items()})


def _field(field: FieldInfo) -> dg.Field:
    required = field.is_required()
    return dg.Field(_type(field.annotation), is_required=required, description=_description(field))


def _description(field: FieldInfo) -> str:
    """Return the documentation of a field with its choices and its default, as one paragraph."""
    said = [" ".join((field.description or "").replace("``", "`").split())]
    if len(choices := _choices(field.annotation)) > 1:
        said.append(f"One of: {', '.join(choices)}.")
    default = field.get_default()
    # A default of None, and that of a section, are described by the field itself.
    if not field.is_required() and isinstance(default, bool | int | float | str | tuple) and default not in ("", ()):
        said.append(f"Default: {_shown(default)}.")
    return " ".join(filter(None, said))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return str(value.value) if isinstance(value, Enum) else str(value)


def _choices(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return (
        [str(value) for value in typing.get_args(annotation)] if typing.get_origin(annotation) is typing.Literal else []
    )


def _type(annotation: Any) -> Any:
    """Return Dagster's type of a field; `Any` where it has none that accepts the same values."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin in (typing.Union, types.UnionType):
        others = [part for part in parts if part is not type(None)]
        inner = _type(others[0]) if len(others) == 1 else dg.Any
        # A section may be left out, so it need not be null. Its fields are then shown as those of any other section.
        nullable = len(others) < len(parts) and inner is not dg.Any and not isinstance(inner, dg.Permissive)
        return dg.Noneable(inner) if nullable else inner
    if origin is tuple:
        inner = _type(parts[0])
        return dg.Array(inner) if inner is not dg.Any else dg.Any
    if origin is typing.Literal:
        return _type(type(parts[0]))
    if origin is dict or origin is Mapping:
        return dg.Permissive()
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            return schema_of(annotation)
        if issubclass(annotation, Enum):
            return str
        return SCALARS.get(annotation, dg.Any)
    return dg.Any
