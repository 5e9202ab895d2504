"""The segmentation of a graph as it was at an earlier moment. Reads only.

An edit leaves the layer 2 rows that it retires unchanged. So the leaves of a root at some time are the supervoxels that
the segmentation of that time shows for it.
"""

from __future__ import annotations

import tensorstore as ts

from sv_pipeline.errors import NotFoundError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import milliseconds
from sv_pipeline.grid import Box
from sv_pipeline.moments import Moment, epoch_milliseconds, parse_moment
from sv_pipeline.operations.log import OperationStatus, find_operation
from sv_pipeline.operations.refusal import bad_request

__all__ = ["Moment", "milliseconds_of", "segmentation_at"]


def milliseconds_of(graph: ChunkedGraph, moment: Moment) -> int:
    """Convert a moment to milliseconds since the epoch, the unit of cell timestamps.

    Raises
    ------
    EditRefused
        If the moment is neither a time nor the number of an operation.
    NotFoundError
        If it is the number of an operation that does not exist or did not succeed.
    """
    with bad_request():
        known = parse_moment(moment)
    if not isinstance(known, int):
        return epoch_milliseconds(known)
    found = find_operation(graph, known)
    if found is None or found.status is not OperationStatus.SUCCESS or found.timestamp is None:
        raise NotFoundError(
            f"operation {known} of graph {graph.graph_id!r} does not exist or did not succeed, so it marks no moment.",
            remedy=f"Name one with the outcome SUCCESS: 'sv-pipeline ops {graph.graph_id}' lists them.",
        )
    return milliseconds(found.timestamp) or 0


def segmentation_at(graph: ChunkedGraph, moment: Moment, *, within: Box | None = None) -> ts.TensorStore:
    """Open the supervoxels of the base mip as they were at a moment, read-only.

    The result is exact in the chunks that ``within`` touches. Elsewhere, edits made at nearly the same time may have
    reached the fork in another order than their timestamps tell. Without ``within``, the volume is one generation of
    the fork, which may lack such an edit.
    """
    time = milliseconds_of(graph, moment)
    generation = graph.fork.generation_at(time, within=within)
    return graph.fork.open(version=generation)
