"""Types of values in a configuration: numbers, places, names and addresses, each with its validation. Opens nothing."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import to_json

from sv_pipeline.errors import ConfigError
from sv_pipeline.places import is_spec, local_folder, parse_folder, parse_source

__all__ = [
    "MAX_TABLE_NAME",
    "Address",
    "ChunkAxis",
    "CloudName",
    "Folder",
    "ForeignSection",
    "Int",
    "LocalFolder",
    "NamePart",
    "Nanometres",
    "PopulateMethod",
    "Section",
    "Source",
    "Voxel",
    "no_bool",
]

MAX_TABLE_NAME = 50
"""Largest number of characters; the limit is Bigtable's."""
MAX_CHUNK_AXIS = 1 << 16
"""Largest chunk axis in voxels. Larger chunks do not fit into memory, and their grids overflow integers."""
FARTHEST_VOXEL = 1 << 40


def no_bool(value: Any) -> Any:
    """Return the value unless it is a boolean, which Python would accept as a number."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")  # noqa: TRY004 - pydantic handles ValueErrors only
    return value


def _understood(parse: Any) -> Any:
    """Return a validator that applies a parser of places and keeps the text as it is."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return text

    return check


def _source(text: str) -> None:
    if not is_spec(text):
        parse_source(text)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or any(c.isspace() or c == "/" for c in text) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError("an address has the form host:port")
    if not 0 < int(port) < 1 << 16:
        raise ValueError("a port must be a number from 1 to 65535")
    return text


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    try:
        to_json(value)
    except ValueError as error:
        raise ValueError("it holds a value that JSON cannot store, such as binary data; leave it out") from error
    return value


Int = Annotated[int, BeforeValidator(no_bool)]
ChunkAxis = Annotated[int, BeforeValidator(no_bool), Field(gt=0, le=MAX_CHUNK_AXIS)]
Nanometres = Annotated[float, BeforeValidator(no_bool), Field(ge=1e-3, le=1e9, allow_inf_nan=False)]
"""Edge length of a voxel in nm. Values outside the range were probably given in another unit, such as metres."""
Voxel = Annotated[int, BeforeValidator(no_bool), Field(ge=-FARTHEST_VOXEL, le=FARTHEST_VOXEL)]
Folder = Annotated[str, AfterValidator(_understood(parse_folder))]
LocalFolder = Annotated[str, AfterValidator(_understood(local_folder))]
Source = Annotated[str, AfterValidator(_understood(_source))]
Address = Annotated[str, AfterValidator(_address)]
ForeignSection = Annotated[dict[str, Any], AfterValidator(_storable)]
"""A section of other software. The registry stores it as JSON."""
CloudName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9:._-]*$", max_length=100)]
"""Name of a project or an instance of Google Cloud."""
NamePart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]*$", max_length=MAX_TABLE_NAME)]


class Section(BaseModel):
    """A section of a configuration: it has no other keys than its fields, under their names or their aliases."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, field in cls.model_fields.items():
                if field.alias and field.alias != name and name in data and field.alias in data:
                    raise ValueError(f"{field.alias} and {name} are the same field: give it once")
        return data


class PopulateMethod(StrEnum):
    """How workers write the base without contention on its manifest."""

    PARTS = "parts"
    """Each task into a private store; one process merges them by reference."""
    COORDINATOR = "coordinator"
    """All tasks through one DistributedCoordinatorServer."""
    DIRECT = "direct"
    """Atomic commits straight to the base; for one worker."""
    REFERENCE = "reference"
    """As parts, which refer to the watershed's own chunks instead of copies; refused where that is not possible."""
    AUTO = "auto"
    """By reference where that is possible, as parts elsewhere; per mip, and per chunk."""

    @property
    def refers(self) -> bool:
        """Whether a base may refer to chunks of the watershed instead of copying them."""
        return self in (PopulateMethod.REFERENCE, PopulateMethod.AUTO)
