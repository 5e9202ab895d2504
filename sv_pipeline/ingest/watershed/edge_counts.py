"""Sums of the counts of pass B over ranges of chunks, so that its end need not read the marker of every chunk.

Owns ``<watershed>/.watershed/edge_counts/<first>_<stop>.json``: the sums over the chunks with indices from ``first`` up
to but not including ``stop``, written when a batch has written all its done-markers. The counts of a chunk follow from
the source alone, so a sum stays true when a chunk is made again. Only the markers tell that all chunks are done.
"""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import numpy.typing as npt

from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan
from sv_pipeline.storage import kv
from sv_pipeline.storage.stored_json import parse_stored

__all__ = ["read_counts", "total_counts", "write_range_counts"]

FOLDER = ".watershed/edge_counts/"
READ_AT_ONCE = 2_000

_NAME = re.compile(r"(\d+)_(\d+)\.json")


def write_range_counts(plan: WatershedPlan, chunks: npt.NDArray[np.int64], counts: dict[str, int]) -> None:
    """Store the sums over chunks, coordinates of shape (n, 3), if these are all chunks of a range of indices.

    Nothing is stored if the sums of a range that contains it are there.
    """
    if not len(chunks):
        return
    index = plan.grid.index(2, chunks)
    first, stop = int(index[0]), int(index[-1]) + 1
    if not np.array_equal(index, np.arange(first, stop)):
        return
    if not any(start <= first and stop <= end for start, end in _ranges(plan)):
        kv.write_bytes(plan.target, f"{FOLDER}{first}_{stop}.json", json.dumps(counts).encode())


def total_counts(plan: WatershedPlan) -> Counter[str]:
    """Return the sums over all chunks, each of which must be done."""
    total: Counter[str] = Counter()
    at, keys = 0, []
    left: list[tuple[int, int]] = []
    for first, stop in [*_ranges(plan), (plan.grid.count(2),) * 2]:
        if first >= at:  # ranges of batches of another size may overlap
            left.append((at, first))
            keys.append(f"{FOLDER}{first}_{stop}.json")
            at = stop
    for key, data in zip(keys[:-1], kv.read_many(plan.target, keys[:-1]), strict=True):
        total.update(parse_stored(data or b"{}", dict[str, int], plan.target + key, remedy="Remove it."))
    for first, stop in left:
        for start in range(first, stop, READ_AT_ONCE):
            total.update(_counts_of(plan, start, min(stop, start + READ_AT_ONCE)))
    return total


def _ranges(plan: WatershedPlan) -> list[tuple[int, int]]:
    found = map(_NAME.fullmatch, (key.removeprefix(FOLDER) for key in kv.list_keys(plan.target, FOLDER)))
    ranges = [(int(match[1]), int(match[2])) for match in found if match is not None]
    return sorted((first, stop) for first, stop in ranges if first < stop <= plan.grid.count(2))


def read_counts(plan: WatershedPlan, coordinate: npt.ArrayLike) -> dict[str, int] | None:
    """Read the counts in the marker of a chunk; None if it is not done."""
    key = plan.marker(WatershedPass.EDGES, coordinate)
    data = kv.read_bytes(plan.target, key)
    return None if data is None else _parsed(plan, key, data)


def _counts_of(plan: WatershedPlan, first: int, stop: int) -> Counter[str]:
    """Sum up the counts in the markers of some chunks."""
    chunks = np.stack(np.unravel_index(np.arange(first, stop), plan.grid.shape(2)), axis=-1)
    keys = [plan.marker(WatershedPass.EDGES, chunk) for chunk in chunks]
    total: Counter[str] = Counter()
    for key, data in zip(keys, kv.read_many(plan.target, keys), strict=True):
        if data is not None:
            total.update(_parsed(plan, key, data))
    return total


def _parsed(plan: WatershedPlan, key: str, data: bytes) -> dict[str, int]:
    remedy = "Remove that marker, then run the ingest again: it makes this chunk anew."
    return parse_stored(data, dict[str, int], plan.target + key, remedy=remedy)
