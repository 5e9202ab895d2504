"""Successors of supervoxels: a supervoxel may still exist (perhaps with another id), be joined by an undo, or be split.

Ids are never reused, so a supervoxel that was split and then restored by an undo has another id::

    A --split--> A1, A2 --undo--> A'           A is here, as A'; A1 and A2 are joined, as A'
    A --split--> A1, A2 --A1 split, undone-->  A1', A2         A is split; A1 is here, as A1'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, read_operations
from sv_pipeline.table import columns, keys

__all__ = ["Successor", "Successors", "Whereabouts", "names_of_today"]


class Whereabouts(Enum):
    """What happened to the voxels of a supervoxel."""

    HERE = auto()
    """They form one supervoxel, which contains no others."""
    JOINED = auto()
    """They are in one supervoxel with others, because the split that made this supervoxel was undone."""
    SPLIT = auto()
    """They are in several supervoxels, or in one that is not a restored form of the old one."""


@dataclass(frozen=True)
class Successor:
    """What became of one supervoxel."""

    state: Whereabouts
    supervoxel: int
    """Its current id, the supervoxel to which it was joined, or its last id before it was split."""
    operation: int | None
    """The undo that restored it (None if it was never replaced) or joined it, or the operation that split it."""


@dataclass(frozen=True, eq=False)
class Successors:
    """All successors of some supervoxels, in memory."""

    successors: dict[int, list[int]]
    made_by: dict[int, int]
    """Operation that created each successor."""
    operations: dict[int, Operation] = field(repr=False)

    @classmethod
    def read(cls, graph: ChunkedGraph, supervoxels: npt.ArrayLike) -> Successors:
        """Read all successors, with one request per generation and one for the log."""
        successors: dict[int, list[int]] = {}
        made_by: dict[int, int] = {}
        wanted = np.unique(np.asarray(supervoxels, np.uint64))
        while len(wanted):
            found = graph.table.read_rows(
                keys.node_keys(wanted), [columns.NEW_IDS.key, columns.OPERATION_ID.key], newest_only=True
            )
            follow: set[int] = set()
            for key, row in found.items():
                new, operation = columns.NEW_IDS.newest(row), columns.OPERATION_ID.newest(row)
                if operation is not None:
                    made_by[int(key)] = operation
                if new is not None:
                    successors[int(key)] = new.tolist()
                    follow.update(new.tolist())
            wanted = np.array(sorted(follow), np.uint64)
        ids = np.unique(np.array([made_by[n] for new in successors.values() for n in new if n in made_by], np.int64))
        operations = read_operations(graph, ids) if len(ids) else []
        return cls(successors, made_by, {operation.operation_id: operation for operation in operations})

    def of(self, supervoxel: int) -> Successor:
        """Return what became of one of the supervoxels."""
        back: int | None = None
        while True:
            new = self.successors.get(supervoxel)
            if not new:
                return Successor(Whereabouts.HERE, supervoxel, back)
            by = self.made_by.get(new[0])
            operation = None if by is None else self.operations.get(by)
            if operation is not None and operation.kind == "undo":
                return Successor(Whereabouts.JOINED, new[0], by)
            successors = {self.of(fragment) for fragment in new}
            whole = next(iter(successors))
            if len(successors) > 1 or whole.state is not Whereabouts.JOINED:
                return Successor(Whereabouts.SPLIT, supervoxel, by)
            supervoxel, back = whole.supervoxel, whole.operation


def names_of_today(graph: ChunkedGraph, supervoxels: UInt64Array) -> UInt64Array:
    """Return the current ids of supervoxels, any shape; 0 for those that are split, or joined to others."""
    distinct, index = np.unique(supervoxels, return_inverse=True)
    successors = Successors.read(graph, distinct)
    found = [successors.of(supervoxel) for supervoxel in distinct.tolist()]
    names = np.array([one.supervoxel if one.state is Whereabouts.HERE else 0 for one in found], np.uint64)
    return np.asarray(names[index].reshape(supervoxels.shape), np.uint64)
