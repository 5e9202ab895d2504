"""Verify a registered graph, all of it or what has changed: wires the dataset into the checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    return verify(
        dataset.graph,
        watershed_url=dataset.watershed_url,
        graph_id=dataset.graph_id,
        checks=checks,
        sample=sample,
        workers=workers,
        progress=progress,
        seed=seed,
    )


def verify_changes(dataset: Dataset, after: int, *, workers: int = 1) -> VerifyReport:
    """Verify what operations later than one have written to the fork, and that table and fork know the same ones."""
    url, graph_id = dataset.watershed_url, dataset.graph_id
    records = operations(url, graph_id, after=after) if fork_exists(url, graph_id) else []
    boxes = [box for record in records for box in record.boxes]
    return verify(
        dataset.graph, watershed_url=url, graph_id=graph_id, checks=CHECKS_OF_CHANGES, workers=workers, within=boxes
    )
