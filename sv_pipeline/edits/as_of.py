"""What a graph was at a moment: its segmentation, its objects. Reads.

Layer 2 rows that an edit retired stay as they are, so the leaves of a root at a time are the supervoxels that the
segmentation of that time shows for it.
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
    """A moment as time of cells.

    Raises
    ------
    EditRefused
        If it is neither a time nor the number of an operation.
    NotFoundError
        If it names an operation that was never made.
    """
    with bad_request():
        known = parse_moment(moment)
    if not isinstance(known, int):
        return epoch_milliseconds(known)
    found = find_operation(graph, known)
    if found is None or found.status is not OperationStatus.SUCCESS or found.timestamp is None:
        raise NotFoundError(
            f"operation {known} of graph {graph.graph_id!r} was never made: it is no moment to look back to.",
            remedy="List the operations; those with status SUCCESS count.",
        )
    return milliseconds(found.timestamp) or 0


def segmentation_at(graph: ChunkedGraph, moment: Moment, *, within: Box | None = None) -> ts.TensorStore:
    """The supervoxels as they were, base mip, read-only; exact for the chunks that ``within`` touches.

    Edits elsewhere that were made at nearly the same time may have reached the voxels in another order than their
    times say; without ``within`` the volume is that of a generation, which may lack one of them.
    """
    time = milliseconds_of(graph, moment)
    generation = graph.fork.generation_at(time, within=within)
    return graph.fork.open(version=generation)
