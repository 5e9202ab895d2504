"""What could make a planned edit fail once its locks are indefinite, looked for before they are.

An edit that fails after that point is unfinished: its objects stay locked until a recovery has made it, and one that
can never be made has to be abandoned by a person. So whatever is cheap to know is found out here, where an error ends
the edit without effect:

| what would fail | how it is seen |
| --- | --- |
| the fork is gone, read-only, or its disk is full | it is opened; a small file is written to it and removed |
| its number has voxels already, or another owner | their record and fence are read |
| the disk of a table that is a file is full | its free space |
| a cell that is too large for the table | the cells as they will be written |
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sv_pipeline.edits.plan.supervoxel_change import SupervoxelChange
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.writing import OperationRow
from sv_pipeline.segmentation.fork.write_probe import require_committable, require_room
from sv_pipeline.table.interface import MAX_CELL_BYTES, RowMutation, SetCell

__all__ = ["refuse_large_cells", "require_ready"]


def require_ready(graph: ChunkedGraph, row: OperationRow, change: SupervoxelChange | None) -> None:
    """Find out whether table and fork can take an edit; an error if not.

    Parameters
    ----------
    change
        Of supervoxels; None if the fork is not written to.
    """
    if (file := graph.table.file) is not None:
        require_room(Path(file).parent, f"the table of graph {graph.graph_id!r}")
    if change is not None:
        require_committable(graph.fork, row.operation_id, row.owner)


def refuse_large_cells(rows: Iterable[RowMutation], limit: int = MAX_CELL_BYTES) -> None:
    """Refuse an edit with a cell that no table takes.

    Raises
    ------
    EditRefused
        With the row and the column.
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
