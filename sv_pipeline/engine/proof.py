"""Verify a registered graph: wires the dataset into the checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sv_pipeline.registry import Dataset
from sv_pipeline.verify.run import VerifyReport, verify

__all__ = ["verify_dataset"]


def verify_dataset(
    dataset: Dataset,
    *,
    checks: Sequence[str] | None = None,
    sample: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
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
    )
