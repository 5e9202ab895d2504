"""Owns ``ocdbt/.populated/``: the settings of a base, and the progress of its populate.

``meta.json`` holds the settings of the base under PyChunkedGraph's names; PyChunkedGraph prefers them to those in the
meta of a graph. The other files are ours: ``division.json`` is the division of the volume into tasks, ``tasks/`` has a
marker for each task that is done, and ``complete.json`` is written at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.errors import ConfigError, DamagedError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.marker_files import MarkerFiles
from sv_pipeline.storage.stored_json import parse_stored

__all__ = [
    "POPULATED_FOLDER",
    "PopulateMeta",
    "chosen_tasks",
    "claim_meta",
    "claim_settings",
    "done_mask",
    "done_tasks",
    "effective_config",
    "parse_task_name",
    "read_complete",
    "read_marker",
    "read_markers",
    "read_meta",
    "read_results",
    "read_settings",
    "task_name",
    "write_complete",
    "write_marker",
]

POPULATED_FOLDER = ".populated"
TASKS = "tasks/"
SETTINGS = "meta.json"
DIVISION = "division.json"
COMPLETE = "complete.json"
READ_AT_ONCE = 2_000

_TASK = re.compile(r"\d+_\d+_\d+")

Triple = tuple[int, int, int]
Json = dict[str, Any]


@dataclass(frozen=True)
class PopulateMeta:
    """The division of the base into tasks, which the first plan fixes."""

    layer: int
    chunk_size: Triple
    start: Triple
    stop: Triple

    @classmethod
    def of(cls, layer: int, grid: ChunkGrid) -> PopulateMeta:
        """Divide the base by the chunks of one layer."""
        return cls(layer, grid.chunk_size, grid.bounds.start, grid.bounds.stop)

    @property
    def grid(self) -> ChunkGrid:
        """The grid of chunks."""
        return ChunkGrid(Box.of(self.start, self.stop), self.chunk_size)


def _folder(watershed_url: str | Path) -> str:
    return kv.join_url(ocdbt.ocdbt_folder(watershed_url), POPULATED_FOLDER)


def task_name(coordinate: Triple) -> str:
    """Return the name of a task: ``x_y_z`` in chunks of the populate layer."""
    return "_".join(str(int(c)) for c in coordinate)


def parse_task_name(name: str) -> Triple:
    """Return the coordinate in the name of a task."""
    x, y, z = (int(part) for part in name.split("_"))
    return (x, y, z)


def read_settings(watershed_url: str | Path) -> Json | None:
    """Read the settings of a base from its info file; None if there is no such file."""
    raw = kv.read_bytes(_folder(watershed_url), SETTINGS)
    return None if raw is None else parse_stored(raw, Json, _folder(watershed_url) + SETTINGS)


def effective_config(watershed_url: str | Path, config: OcdbtConfig) -> OcdbtConfig:
    """Return the configuration that counts for a watershed: values of its base's info file replace others."""
    settings = read_settings(watershed_url)
    return config if settings is None else config.under(settings, _folder(watershed_url) + SETTINGS)


def claim_settings(watershed_url: str | Path, settings: Json) -> None:
    """Write the settings of a base, unless it has settings already."""
    kv.write_if_absent(_folder(watershed_url), SETTINGS, json.dumps(settings, indent=1).encode())


def read_meta(watershed_url: str | Path) -> PopulateMeta | None:
    """Read the division into tasks; None before the first plan."""
    raw = kv.read_bytes(_folder(watershed_url), DIVISION)
    if raw is None:
        return None
    return parse_stored(raw, PopulateMeta, _folder(watershed_url) + DIVISION)


def claim_meta(watershed_url: str | Path, meta: PopulateMeta) -> None:
    """Fix the division into tasks.

    Raises
    ------
    ConfigError
        If another division is fixed already: a base is populated at one layer of one grid only.
    """
    if kv.write_if_absent(_folder(watershed_url), DIVISION, json.dumps(asdict(meta)).encode()):
        return
    found = read_meta(watershed_url)
    if found is None or found == meta:
        return
    raise ConfigError(
        f"the base of {kv.as_url(watershed_url)} is being populated at layer {found.layer} of chunks of "
        f"{found.chunk_size} voxels in {Box(found.start, found.stop)}; this graph has chunks of {meta.chunk_size} in "
        f"{Box(meta.start, meta.stop)}, and asks for layer {meta.layer}.",
        remedy="Finish that populate first (any graph can be forked from a complete base), or remove the base "
        "(sv-pipeline retire-base).",
    )


def write_marker(watershed_url: str | Path, coordinate: Triple, content: Json) -> bool:
    """Mark a task done; return False if another worker has done so, with other content."""
    return kv.write_if_absent(_folder(watershed_url), TASKS + task_name(coordinate), json.dumps(content).encode())


def read_marker(watershed_url: str | Path, coordinate: Triple) -> Json | None:
    """Read the marker of a task; None if it is not done."""
    return read_markers(watershed_url, [coordinate])[0]


def read_markers(watershed_url: str | Path, coordinates: list[Triple]) -> list[Json | None]:
    """Read the markers of tasks; None for each task that is not done."""
    raw = kv.read_many(_folder(watershed_url), [TASKS + task_name(c) for c in coordinates])
    folder = _folder(watershed_url) + TASKS
    remedy = "Remove that marker, then run the populate again; it repeats this task."
    return [
        None if value is None else parse_stored(value, Json, folder + task_name(coordinate), remedy=remedy)
        for value, coordinate in zip(raw, coordinates, strict=True)
    ]


def read_results(
    watershed_url: str | Path, coordinates: list[Triple], names: Sequence[str]
) -> tuple[dict[Triple, str], dict[str, int]]:
    """Return the winning attempt of each done task that made a part, and sums of numbers by name over the markers."""
    winners: dict[Triple, str] = {}
    sums = dict.fromkeys(names, 0)
    for first in range(0, len(coordinates), READ_AT_ONCE):
        some = coordinates[first : first + READ_AT_ONCE]
        for task, marker in zip(some, read_markers(watershed_url, some), strict=True):
            if marker is not None and "attempt" in marker:
                winners[task] = marker["attempt"]
            for name in names:
                sums[name] += (marker or {}).get(name, 0)
    return winners, sums


def done_tasks(watershed_url: str | Path) -> set[Triple]:
    """Return the coordinates of all tasks that have a marker."""
    keys = kv.list_keys(_folder(watershed_url), TASKS)
    names = [key.removeprefix(TASKS) for key in keys]
    _refuse_strange(_folder(watershed_url) + TASKS, names)
    return {parse_task_name(name) for name in names}


def done_mask(watershed_url: str | Path, shape: Triple) -> npt.NDArray[np.bool_]:
    """Return whether each task has a marker, shape (tasks,), by its index in a grid of this shape.

    Raises
    ------
    DamagedError
        If a file is not the marker of a task.
    """
    folder = _folder(watershed_url) + TASKS
    done, others = MarkerFiles(folder, shape).look()
    _refuse_strange(folder, others)
    return done


def chosen_tasks(grid: ChunkGrid, layer: int, chosen: npt.NDArray[np.bool_]) -> list[Triple]:
    """Return the coordinates of some tasks of a layer, which a mask of shape (tasks,) chooses by their indices."""
    chunks = np.unravel_index(np.flatnonzero(chosen), grid.shape(layer))
    return list(zip(*(axis.tolist() for axis in chunks), strict=True))


def _refuse_strange(folder: str, names: list[str]) -> None:
    if strange := [name for name in names if not _TASK.fullmatch(name)]:
        place = folder + strange[0]
        raise DamagedError(f"{place} is not the marker of a populate task.", remedy="Remove it.", place=place)


def write_complete(watershed_url: str | Path, content: Json) -> None:
    """Record that the whole base is populated."""
    kv.write_bytes(_folder(watershed_url), COMPLETE, json.dumps(content).encode())


def read_complete(watershed_url: str | Path) -> Json | None:
    """Read the record of completion; None while the populate is not complete."""
    raw = kv.read_bytes(_folder(watershed_url), COMPLETE)
    return None if raw is None else parse_stored(raw, Json, _folder(watershed_url) + COMPLETE)
