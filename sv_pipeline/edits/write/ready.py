"""Checks, before the locks become indefinite, for conditions that would make a planned edit fail later.

An edit that fails after that point is unfinished: its objects stay locked until recovery has completed it, and if that
is impossible, a person has to abandon it. So everything that is cheap to check is checked here, where an error ends the
edit without effect:

| condition | check |
| --- | --- |
| the fork is gone or read-only, or its disk is full | open the fork, write a small file to it, and remove the file |
| the operation has voxels already, or another owner | read its record and its fence in the fork |
| the disk of a table that is a file is full | look at the free space |
| a cell is too large for the table | look at the cells that will be written |
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sv_pipeline.edits.plan.supervoxel_change import SupervoxelChange
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.writing import OperationRow
from sv_pipeline.segmentation.fork.write_probe import require_committable, require_room
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.table.interface import MAX_CELL_BYTES, RowMutation, SetCell

__all__ = ["refuse_large_cells", "require_ready"]


def require_ready(graph: ChunkedGraph, row: OperationRow, change: SupervoxelChange | None) -> OcdbtStore | None:
    """Raise an error, derived from SvPipelineError, unless table and fork can take an edit.

    Parameters
    ----------
    row
        The operation's row in the log.
    change
        The replacement of supervoxels; None if the edit does not write to the fork.

    Returns
    -------
    OcdbtStore | None
        The fork's keys and voxels, opened for the commit; None if the edit does not write to the fork.
    """
    if (file := graph.table.file) is not None:
        require_room(Path(file).parent, f"the table of graph {graph.graph_id!r}")
    return None if change is None else require_committable(graph.fork, row.operation_id, row.owner)


def refuse_large_cells(rows: Iterable[RowMutation], limit: int = MAX_CELL_BYTES) -> None:
    """Refuse an edit with a cell of more than ``limit`` bytes, which no table can store.

    Raises
    ------
    EditRefused
        The message names the row and the column.
    """
    for row in rows:
        for cell in row.changes:
            if isinstance(cell, SetCell) and len(cell.value) > limit:
                raise EditRefused(
                    Reason.TOO_LARGE,
                    f"the edit would write {len(cell.value):,} bytes to {cell.column.qualifier.decode()!r} of row "
                    f"{row.key.decode()}; a cell holds {limit:,} at most.",
                    remedy="An object has too many neighbours or children there; split it somewhere else first.",
                )
