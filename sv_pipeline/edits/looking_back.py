"""What was done to a graph, and what it was: the log as a table, objects of the past, lineage. Reads.

Layer 2 rows that an edit retired stay as they are, so the leaves of a root at a time are the supervoxels that the
segmentation of that time shows for it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import Time
from sv_pipeline.graph.lineage import read_operations
from sv_pipeline.graph.queries import leaves, roots
from sv_pipeline.table.columns import Ragged

__all__ = ["leaves_at", "operations_table"]


def operations_table(graph: ChunkedGraph) -> pd.DataFrame:
    """The operation log: id, kind, status, time, user, number of roots and the roots, reason of a refusal."""
    rows: list[dict[str, Any]] = []
    for operation in read_operations(graph):
        text = operation.exception or ""
        refused = text.startswith("refused:")
        rows.append(
            {
                "operation_id": operation.operation_id,
                "kind": operation.kind,
                "status": "" if operation.status is None else operation.status.name,
                "refused": text.split(":", 2)[1] if refused else "",
                "time": operation.timestamp,
                "user": operation.user or "",
                "n_roots": len(operation.roots),
                "roots": operation.roots.tolist(),
                "exception": text,
            }
        )
    names = ["operation_id", "kind", "status", "refused", "time", "user", "n_roots", "roots", "exception"]
    return pd.DataFrame(rows, columns=names).set_index("operation_id")


def leaves_at(graph: ChunkedGraph, supervoxels: Any, at: Time) -> Ragged:
    """The supervoxels, at that moment, of the object that each supervoxel was part of at a moment."""
    return leaves(graph, roots(graph, supervoxels, at=at))
