"""The event of one finished operation, as a value and as JSON. Reads nothing.

There are two forms. ``sv_pipeline`` holds all fields of an `EditEvent`. ``pychunkedgraph`` has the attributes and
fields of the message that PyChunkedGraph publishes after an edit, which its meshing workers understand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sv_pipeline.event_receivers import EventFormat
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array

__all__ = ["EditEvent", "Message"]


@dataclass(frozen=True)
class Message:
    """An event in the form in which it is sent to a receiver."""

    number: int
    """Number of the event in the feed."""
    attributes: dict[str, str]
    """Attributes by which receivers can filter messages without parsing them."""
    payload: dict[str, Any]
    """The event as a value for JSON."""
    ordering_key: str
    """Messages with the same key are delivered in order."""

    @property
    def body(self) -> bytes:
        """The payload as JSON, UTF-8. Ids are JSON numbers beyond 2 ** 53, which some languages read as floats."""
        return json.dumps(self.payload, separators=(",", ":")).encode()


@dataclass(frozen=True, eq=False)
class EditEvent:
    """One finished operation, and what it has changed."""

    feed: str
    """Name of the feed; a different name means that the graph was made again."""
    number: int
    """Number of the event in the feed: 1, 2, 3, ... without gaps."""
    graph_id: str
    table: str
    """Name of the graph's table."""
    operation_id: int
    kind: str
    """``merge``, ``split``, ``undo``, ``redo`` or ``unknown``."""
    about: int
    """Id of the operation that an undo or redo reverts or repeats; 0 for other kinds."""
    user: str
    time: int
    """Logical time of the edit, in milliseconds since the epoch; 0 if it cannot be read."""
    old_roots: UInt64Array
    """Roots that it replaced, ascending."""
    new_roots: UInt64Array
    """Roots that it made, ascending."""
    old_layer2: UInt64Array
    """Layer 2 nodes that it replaced, ascending."""
    new_layer2: UInt64Array
    """Layer 2 nodes that it made, ascending."""
    supervoxels: UInt64Array
    """Pairs (old, new) of supervoxels that it replaced, shape (n, 2)."""
    boxes: tuple[Box, ...] = ()
    """Boxes in which voxels have changed, in absolute voxels of mip 0. These are whole chunks if other software made
    the edit."""
    coarser_mips_behind: bool = False
    """Whether coarser mips of these boxes did not show the edit yet when the event was read."""
    still_one_object: bool = False
    """Whether the edit should have separated something, but has separated nothing, which the request allowed."""
    source: tuple[tuple[int, int, int], ...] = field(default=())
    """Source points of the request, in voxels (x, y, z) of mip 0."""
    sink: tuple[tuple[int, int, int], ...] = field(default=())
    """Sink points of the request, likewise."""
    unreadable: tuple[str, ...] = ()
    """Fields, as `to_dict` names them, that cannot be read because rows are damaged; they are empty here."""

    @property
    def id(self) -> str:
        """Id of the event, which is the same each time that it is delivered."""
        return f"{self.feed}-{self.number}"

    def __repr__(self) -> str:
        return f"<EditEvent {self.number}: {self.kind} {self.operation_id} by {self.user} in {self.graph_id}>"

    def __str__(self) -> str:
        when = f"{self._when:%Y-%m-%d %H:%M:%S}" if self._when else "at an unknown time"
        of = f" of {self.about}" if self.about else ""
        parts = [f"{self.number:6d}  {when}  operation {self.operation_id}: {self.kind}{of} by {self.user}"]
        parts.append(f"roots {_list(self.old_roots)} -> {_list(self.new_roots)}")
        if len(self.supervoxels):
            parts.append(f"{len(np.unique(self.supervoxels[:, 0]))} supervoxels replaced")
        if self.unreadable:
            parts.append(f"cannot be read: {' '.join(self.unreadable)}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return a value for JSON: ids are numbers, boxes [[start, stop], ...], and the time is ISO 8601 in UTC."""
        return {
            "id": self.id,
            "number": self.number,
            "graph_id": self.graph_id,
            "operation_id": self.operation_id,
            "kind": self.kind,
            "about": self.about or None,
            "user": self.user,
            "time": self._when.isoformat(timespec="milliseconds") if self._when else None,
            "old_root_ids": self.old_roots.tolist(),
            "new_root_ids": self.new_roots.tolist(),
            "old_lvl2_ids": self.old_layer2.tolist(),
            "new_lvl2_ids": self.new_layer2.tolist(),
            "replaced_supervoxels": _by_old(self.supervoxels),
            "boxes": self._boxes,
            "coarser_mips_behind": self.coarser_mips_behind,
            "still_one_object": self.still_one_object,
            "source": [list(point) for point in self.source],
            "sink": [list(point) for point in self.sink],
            "unreadable": list(self.unreadable),
        }

    def message(self, form: EventFormat) -> Message:
        """Return the event as a message in one of the forms."""
        if EventFormat(form) is EventFormat.SV_PIPELINE:
            attributes = {"event_id": self.id, "graph_id": self.graph_id, "kind": self.kind, "user": self.user}
            return Message(self.number, attributes, self.to_dict(), self.graph_id)
        attributes = {"table_id": self.table, "user_id": self.user, "remesh": "true", "remesh_priority": "true"}
        payload: dict[str, Any] = {
            "operation_id": self.operation_id,
            "new_lvl2_ids": self.new_layer2.tolist(),
            "new_root_ids": self.new_roots.tolist(),
            "old_root_ids": self.old_roots.tolist(),
        }
        if len(self.supervoxels):
            attributes["downsample"] = "true"
            payload["seg_bboxes"] = self._boxes
        if self.unreadable:
            attributes["unreadable"] = ",".join(self.unreadable)
        return Message(self.number, attributes, payload, self.graph_id)

    @property
    def _when(self) -> datetime | None:
        return datetime.fromtimestamp(self.time / 1000, UTC) if self.time else None

    @property
    def _boxes(self) -> list[list[list[int]]]:
        return [[list(box.start), list(box.stop)] for box in self.boxes]


def _list(ids: UInt64Array) -> str:
    return " ".join(map(str, ids.tolist())) or "none"


def _by_old(pairs: UInt64Array) -> list[dict[str, Any]]:
    """Return ``{"old": id, "new": [ids]}`` for each replaced supervoxel."""
    return [
        {"old": old, "new": np.unique(pairs[pairs[:, 0] == old, 1]).tolist()} for old in np.unique(pairs[:, 0]).tolist()
    ]
