"""Verify a registered graph, all of it or what has changed: wires the dataset into the checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sv_pipeline.engine.beside_edits import verified_beside_edits
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork import fork_exists
from sv_pipeline.segmentation.operations import operations
from sv_pipeline.verify.run import VerifyReport, verify

__all__ = ["CHECKS_OF_CHANGES", "verify_changes", "verify_dataset"]

CHECKS_OF_CHANGES = ("pair", "digests", "lineage")


def verify_dataset(
    dataset: Dataset,
    *,
    checks: Sequence[str] | None = None,
    sample: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> VerifyReport:
    """Run checks (default: all) on a graph and its voxels; see :func:`sv_pipeline.verify.run.verify`."""
    graph = dataset.graph

    def run(wanted: Sequence[str] | None) -> VerifyReport:
        return verify(
            graph,
            watershed_url=dataset.watershed_url,
            graph_id=dataset.graph_id,
            checks=wanted,
            sample=sample,
            workers=workers,
            progress=progress if wanted is checks else None,
            seed=seed,
        )

    return verified_beside_edits(graph.table, checks, run)


def verify_changes(dataset: Dataset, after: int, *, workers: int = 1) -> VerifyReport:
    """Verify what operations later than one have written to the fork, and that table and fork know the same ones."""
    url, graph_id = dataset.watershed_url, dataset.graph_id
    records = operations(url, graph_id, after=after) if fork_exists(url, graph_id) else []
    boxes = [box for record in records for box in record.boxes]
    graph = dataset.graph

    def run(wanted: Sequence[str] | None) -> VerifyReport:
        return verify(graph, watershed_url=url, graph_id=graph_id, checks=wanted, workers=workers, within=boxes)

    return verified_beside_edits(graph.table, CHECKS_OF_CHANGES, run)
