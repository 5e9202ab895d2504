"""Numbers of edits and of previews, and the operation log as a table. Draws and writes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sv_pipeline.algorithms.multicut.cut import Preview
from sv_pipeline.algorithms.voxel_cut import Doubt
from sv_pipeline.edits import CommittedEdit, MergePreview, SplitPreview
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import Operation, about, read_operations
from sv_pipeline.operations.writing import read_still_one_object
from sv_pipeline.table import columns
from sv_pipeline.table.counters import last_operation_id

__all__ = ["doubt_numbers", "edit_numbers", "merge_numbers", "operations_table", "preview_numbers", "refusal_of"]


def refusal_of(preview: SplitPreview | MergePreview) -> tuple[str, str] | None:
    """Return reason and message of the refusal of a previewed edit; None if it would not be refused."""
    refusal = preview.refusal
    return None if refusal is None else (str(refusal.reason), str(refusal))


def merge_numbers(preview: MergePreview) -> dict[str, Any]:
    """Return the numbers of a previewed merge."""
    refused, plan = refusal_of(preview), preview.plan
    numbers: dict[str, Any] = {"legal": refused is None, "roots": preview.roots.tolist()}
    if refused is not None:
        numbers |= {"reason": refused[0], "message": refused[1]}
    if plan is not None:
        numbers |= {"activated_edges": len(plan.activated), "needs_a_new_edge": len(plan.fake_edges) > 0}
    return numbers


def preview_numbers(preview: SplitPreview) -> dict[str, Any]:
    """Return the numbers of a previewed split."""
    refused = refusal_of(preview)
    numbers: dict[str, Any] = {"legal": refused is None}
    if refused is not None:
        numbers |= {"reason": refused[0], "message": refused[1]}
    if isinstance(preview.outcome, Preview):
        cut = preview.outcome.cut
        sizes = [len(component) for component in preview.outcome.components]
        numbers |= {
            "removed_edges": len(cut.removed_edges),
            "weight": float(cut.weight),
            "parts_in_region": len(sizes),
            "supervoxels_of_parts": sizes,
        }
    numbers |= {
        "objects": preview.objects,
        "still_one_object": preview.still_one_object,
        "region_enlarged": preview.enlarged,
    }
    if preview.supervoxels is not None:
        change, (source, sink) = preview.supervoxels.change, preview.supervoxels.voxel_counts
        links = np.zeros((0, 2), np.uint64) if change is None else change.links
        numbers |= {
            "split_supervoxels": len(np.unique(links[:, 0])),
            "new_supervoxels": len(np.unique(links[:, 1])),
            "cut_voxels_source": source,
            "cut_voxels_sink": sink,
        }
    if preview.doubt is not None:
        numbers |= doubt_numbers(preview.doubt)
    return numbers


def doubt_numbers(doubt: Doubt) -> dict[str, Any]:
    """Return the numbers of what is doubtful about a cut, and the text that explains them as ``doubt``."""
    numbers = {
        "doubt": str(doubt),
        "doubt_kind": str(doubt.kind),
        "doubtful_side": doubt.name,
        "doubtful_voxels": doubt.voxels,
        "sure": round(doubt.sure, 4),
        "deciding_voxel": None if doubt.place is None else list(doubt.place),
    }
    if doubt.shape is not None:
        numbers |= {
            "doubtful_thickness": round(doubt.shape.thickness, 3),
            "doubtful_deep": round(doubt.shape.deep, 4),
            "doubtful_surface": round(doubt.shape.surface, 4),
        }
    return numbers


def edit_numbers(edit: CommittedEdit) -> dict[str, Any]:
    """Return the numbers of an edit that was made."""
    return {
        "operation": edit.operation_id,
        "kind": edit.kind,
        "user": edit.user or "",
        "edges": len(edit.edges),
        "old_roots": edit.old_roots.tolist(),
        "new_roots": edit.roots.tolist(),
        "still_one_object": edit.still_one_object,
        "replaced_supervoxels": len(np.unique(edit.supervoxels[:, 0])),
        "new_supervoxels": len(np.unique(edit.supervoxels[:, 1])),
    }


_COLUMNS = [
    "operation_id",
    "kind",
    "status",
    "refused",
    "time",
    "user",
    "about",
    "source_ids",
    "sink_ids",
    "source",
    "sink",
    "n_roots",
    "roots",
    "still_one_object",
    "exception",
]


def operations_table(graph: ChunkedGraph, last: int | None = None) -> pd.DataFrame:
    """Return the operation log as a table, newest last: the requests, their users and their results.

    ``about`` is the operation that an undo or redo refers to, 0 for others; ``source`` and ``sink`` are voxels of
    mip 0; ``still_one_object`` is true for edits that separated nothing, which their request allowed.

    Parameters
    ----------
    last
        Only operations with the last so many numbers are listed. There may be fewer of them, since some numbers are
        never used. Default: the whole log.
    """
    ids = None
    if last is not None:
        newest = last_operation_id(graph.table)
        ids = np.arange(max(newest - last, 0) + 1, newest + 1, dtype=np.uint64)
    found = read_operations(graph, ids)
    joined = read_still_one_object(graph.table, [one.operation_id for one in found])
    rows = [{**_row(operation), "still_one_object": operation.operation_id in joined} for operation in found]
    return pd.DataFrame(rows, columns=_COLUMNS).set_index("operation_id")


def _row(operation: Operation) -> dict[str, Any]:
    text = operation.exception or ""
    lists: dict[str, columns.ArrayColumn[Any]] = {
        "source_ids": columns.SOURCE_IDS,
        "sink_ids": columns.SINK_IDS,
        "source": columns.SOURCE_COORDINATES,
        "sink": columns.SINK_COORDINATES,
    }
    named = {name: column.newest(operation.row) for name, column in lists.items()}
    return {
        "operation_id": operation.operation_id,
        "kind": operation.kind,
        "status": "" if operation.status is None else operation.status.name,
        "refused": text.split(":", 2)[1] if text.startswith("refused:") else "",
        "time": operation.timestamp,
        "user": operation.user or "",
        "about": about(operation) or 0,
        **{name: [] if value is None else value.tolist() for name, value in named.items()},
        "n_roots": len(operation.roots),
        "roots": operation.roots.tolist(),
        "exception": text,
    }
