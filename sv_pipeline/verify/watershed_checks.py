"""Check of the files that the making of a watershed leaves beside it: done-markers and tables of its chunks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from sv_pipeline.errors import DamagedError
from sv_pipeline.ingest.watershed.labels import SegmentTable
from sv_pipeline.ingest.watershed.objects import read_object_table
from sv_pipeline.ingest.watershed.plan import META_KEY, OBJECTS_KEY
from sv_pipeline.storage import kv
from sv_pipeline.storage.stored_json import parse_stored
from sv_pipeline.verify.report import Outcome

__all__ = ["check_watershed_files"]

FOLDER = ".watershed/"
KEYS_AT_ONCE = 256
_MARKER = re.compile(r"\.watershed/(labels|edges)/(\d+)_(\d+)_(\d+)\.(npz|json)")


def check_watershed_files(outcome: Outcome, watershed_url: str) -> None:
    """Check that every chunk of the watershed has both of its markers, and that our files beside it can be read.

    The chunk grid is taken from the markers, since the watershed may have been made for a graph with other chunks.
    """
    present = kv.list_keys(watershed_url, FOLDER)
    if not present:
        return  # this watershed was not made by our ingest
    chunks: dict[str, set[tuple[int, ...]]] = {"labels": set(), "edges": set()}
    for key in present:
        if found := _MARKER.fullmatch(key):
            chunks[found[1]].add(tuple(int(part) for part in found.group(2, 3, 4)))
    every = np.array(sorted(chunks["labels"] | chunks["edges"]), np.int64).reshape(-1, 3)
    whole = np.ndindex(*(every.max(axis=0) + 1)) if len(every) else ()
    for coordinate in whole:
        for stage, suffix in (("labels", "npz"), ("edges", "json")):
            if coordinate not in chunks[stage]:
                name = "_".join(map(str, coordinate))
                outcome.error(
                    "a chunk of the watershed has no done-marker: run the ingest again.",
                    f"{watershed_url}{FOLDER}{stage}/{name}.{suffix}",
                )
    if META_KEY not in present:
        outcome.error(
            "the record of the watershed's source is missing: run the ingest again.", watershed_url + META_KEY
        )
    for first in range(0, len(present), KEYS_AT_ONCE):
        names = present[first : first + KEYS_AT_ONCE]
        for key, data in zip(names, kv.read_many(watershed_url, names), strict=True):
            if data is not None:
                _check(outcome, key, data, watershed_url + key)


def _check(outcome: Outcome, key: str, data: bytes, place: str) -> None:
    found = _MARKER.fullmatch(key)
    try:
        if key == META_KEY:
            parse_stored(data, dict[str, Any], place)
        elif key == OBJECTS_KEY:
            read_object_table(data, place)
        elif found and found[1] == "labels":
            SegmentTable.decode(data, place)
        elif found:
            parse_stored(data, dict[str, int], place)
    except DamagedError as error:
        outcome.error("a file of the watershed stage cannot be read: remove it, then run the ingest again.", str(error))
