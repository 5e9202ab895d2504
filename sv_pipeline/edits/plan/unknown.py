"""The refusal of supervoxels that have no rows: unknown to the graph, or made by an edit that is in progress. Reads."""

from __future__ import annotations

import numpy as np

from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.half_written import read_half_written
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.wording import counted

__all__ = ["refusal_of_unknown"]

NAMED = 5
"""Number of supervoxels that a message names."""


def refusal_of_unknown(graph: ChunkedGraph, supervoxels: UInt64Array) -> EditRefused:
    """Return the refusal of a request for supervoxels whose roots were not found, shape (n,) with n > 0.

    An edit commits the voxels of new supervoxels before it writes their parents. Whoever looks a point up in between
    finds an id that the graph does not have yet.
    """
    making = [
        o.operation_id for o in read_half_written(graph.table).operations if np.isin(supervoxels, o.supervoxels).any()
    ]
    names = ", ".join(str(i) for i in supervoxels[:NAMED].tolist())
    # The edit may have ended since the roots were looked for.
    if making or queries.roots(graph, supervoxels, missing_ok=True).all():
        by = f"operation {making[0]}, which is being written" if making else "an operation that has just ended"
        return EditRefused(
            Reason.LOCKED,
            f"an edit is in progress: supervoxel {names} is made by {by}.",
            remedy="If the process of that operation has died, recover it (sv-pipeline stuck list)."
            if making
            else None,
            repeat="Try again in a moment.",
        )
    return EditRefused(
        Reason.NOT_FOUND,
        f"graph {graph.graph_id!r} lacks {counted(len(supervoxels), 'supervoxel')}: {names}.",
        remedy="Check that the ids are of this graph, or look up the current supervoxel of the point.",
    )
