"""Owns the record of the watershed's objects that a base refers to, as they were when the base was populated.

Each part of a populate that refers to the watershed has such a record, ``source.npz`` beside its data: names, sizes and
versions of objects (generations in a bucket, times of modification on disk). It is kept as long as the base. The
present objects of the watershed are found by listings, as in the populate.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base import markers
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.segmentation.base.layout import task_box
from sv_pipeline.segmentation.base.markers import task_name
from sv_pipeline.segmentation.base.referring import MipReferences, SourceObjects, references_of_box
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.precomputed import stored_scale
from sv_pipeline.storage.stored_json import readable_file
from sv_pipeline.storage.stored_scale import StoredScale

__all__ = ["SOURCE_RECORD", "Changes", "changes_of_source", "find_references", "sources_of", "write_source_record"]

Triple: TypeAlias = tuple[int, int, int]
Names: TypeAlias = npt.NDArray[np.bytes_]

SOURCE_RECORD = "source.npz"
SHOWN = 5


@dataclass(frozen=True)
class Changes:
    """The changes of a watershed since a base began to refer to it. Names are relative to the watershed's folder."""

    looked_at: int
    """Number of objects that were compared."""
    changed: tuple[str, ...] = ()
    """Objects that were modified or replaced."""
    gone: tuple[str, ...] = ()
    """Objects that were removed."""
    appeared: tuple[str, ...] = ()
    """Objects that are new, where the base shows background."""
    copied_from: str | None = None
    """Former place of the watershed, if it was copied since the base was made; then only sizes can be compared."""

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone or self.appeared)

    @property
    def text(self) -> str:
        """The changes in one line, with the first names of each kind."""
        kinds = {"changed": self.changed, "gone": self.gone, "appeared": self.appeared}
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
            for kind, names in kinds.items()
            if names
        ]
        return "; ".join(parts) or "none"


def sources_of(base: BaseInfo) -> dict[int, StoredScale]:
    """Return the mips of the watershed that a base refers to, by number; reads the watershed's info file."""
    return {mip: stored_scale(base.watershed_url, mip) for mip in base.referred}


def find_references(
    base: BaseInfo, sources: Mapping[int, StoredScale], grid: ChunkGrid, layer: int, coordinate: Triple
) -> dict[int, MipReferences]:
    """Return the references that one populate task of a base can use, by mip; ``sources`` are those of `sources_of`."""
    return {
        mip: references_of_box(stored, base.volume.scales[mip], task_box(base.volume, mip, grid, layer, coordinate))
        for mip, stored in sources.items()
    }


def write_source_record(base: BaseInfo, coordinate: Triple, attempt: str, found: Sequence[MipReferences]) -> None:
    """Write the record of the objects that a part refers to, beside its data."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **vars(_objects(found)))
    folder = ocdbt.part_folder(base.watershed_url, task_name(coordinate), attempt)
    kv.write_bytes(folder, SOURCE_RECORD, buffer.getvalue())


def _objects(found: Iterable[MipReferences]) -> SourceObjects:
    """Return the objects of several mips as one; each name occurs once, since each mip has its own folder."""
    parts = [part.objects for part in found]
    return SourceObjects(
        names=np.concatenate([part.names for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        versions=np.concatenate([part.versions for part in parts]),
        compressed=np.concatenate([part.compressed for part in parts]),
    )


def changes_of_source(base: BaseInfo, *, at_most: int | None = None) -> Changes:
    """Compare the watershed with the record of the objects that the base refers to.

    Parameters
    ----------
    at_most
        Largest number of populate tasks to compare, evenly spread; all by default.
    """
    meta = markers.read_meta(base.watershed_url)
    if not base.refers or meta is None:
        return Changes(0)
    tasks = [tuple(coordinate) for coordinate in meta.grid.coordinates(meta.layer).tolist()]
    if at_most is not None and len(tasks) > at_most:
        tasks = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, at_most).astype(int)).tolist()]
    sources = sources_of(base)
    looked_at, same_version = 0, 0
    resized, replaced, gone, appeared = set[bytes](), set[bytes](), set[bytes](), set[bytes]()
    moved = base.made_at is not None and base.made_at != base.watershed_url
    for coordinate, then in _records(base, tasks):
        now = _objects(find_references(base, sources, meta.grid, meta.layer, coordinate).values())
        packed, there = np.isin(then.names, now.compressed), np.isin(then.names, now.names)
        _, old, new = np.intersect1d(then.names, now.names, assume_unique=True, return_indices=True)
        other_version = then.versions[old] != now.versions[new]
        looked_at += len(then.names)
        same_version += int((~other_version).sum())
        resized.update(then.names[old][then.sizes[old] != now.sizes[new]].tolist(), then.names[packed].tolist())
        replaced.update(then.names[old][other_version].tolist())
        gone.update(then.names[~there & ~packed].tolist())
        # The chunks of those that were compressed are copied, so the base shows them.
        known = np.isin(now.names, then.names) | np.isin(now.names, then.compressed)
        appeared.update(now.names[~known].tolist())
    # A copy has versions of its own. A folder that was moved, or is reached by another name, has those it had.
    copied = moved and looked_at > 0 and same_version == 0
    changed = resized if copied else resized | replaced
    changed_names, gone_names, new_names = (
        tuple(sorted(name.decode() for name in names)) for names in (changed, gone, appeared)
    )
    return Changes(looked_at, changed_names, gone_names, new_names, base.made_at if copied else None)


def _records(base: BaseInfo, tasks: list[Triple]) -> Iterator[tuple[Triple, SourceObjects]]:
    for coordinate, marker in zip(tasks, markers.read_markers(base.watershed_url, tasks), strict=True):
        if marker is None or "referred" not in marker:
            continue
        folder = ocdbt.part_folder(base.watershed_url, task_name(coordinate), marker["attempt"])
        raw = kv.read_bytes(folder, SOURCE_RECORD)
        with readable_file(folder + SOURCE_RECORD), np.load(io.BytesIO(raw or b"")) as arrays:
            # Earlier versions of this package did not write the last array.
            compressed = arrays["compressed"] if "compressed" in arrays else np.array([], np.bytes_)
            yield coordinate, SourceObjects(arrays["names"], arrays["sizes"], arrays["versions"], compressed)
