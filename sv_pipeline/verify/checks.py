"""The list of checks. The checks themselves are in their own modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.verify import (
    digest_checks,
    ingest_checks,
    pair_checks,
    pyramid_checks,
    source_checks,
    volumes,
    voxel_checks,
    watershed_checks,
)
from sv_pipeline.verify.dataset_under_test import Subject
from sv_pipeline.verify.report import Outcome

__all__ = ["ALL_CHECKS", "CHECKS", "Check"]


@dataclass(frozen=True)
class Check:
    """A check: what it is about, and the function that runs it."""

    description: str
    unit: str
    """Unit of ``checked``, such as nodes or blocks."""
    run: Callable[[Subject, Outcome], None] | None
    """None for checks of rows and edges, which are run on parts of the graph (`part_checks`)."""


def _meta(subject: Subject, outcome: Outcome) -> None:
    ingest_checks.check_meta(outcome, subject.table, subject.meta, subject.volume, subject.fork.watershed_url)


def _voxels(subject: Subject, outcome: Outcome) -> None:
    source = open_volume(subject.fork.watershed_url) if subject.is_built_elsewhere else None
    voxels = subject.voxels.open(0)
    voxel_checks.check_voxels(outcome, subject.nodes_of, subject.grid, voxels, source=source, **subject.options)


def _base(subject: Subject, outcome: Outcome) -> None:
    base = volumes.base_volume(subject.fork.base)
    if base is None:
        outcome.skipped = "there is no base: the graph was built without voxels"
        return
    pyramid_checks.check_base(outcome, base, subject.watershed, **subject.options)


def _source(subject: Subject, outcome: Outcome) -> None:
    source_checks.check_source(outcome, subject.fork.base, sample=subject.sample)


def _fork(subject: Subject, outcome: Outcome) -> None:
    fork = volumes.fork_volume(subject.fork)
    base = volumes.base_volume(subject.fork.base)
    if fork is None or base is None:
        outcome.skipped = "the graph has no fork yet"
        return
    pyramid_checks.check_fork(outcome, subject.fork, fork, base, seed=subject.seed, workers=subject.workers)


def _pyramid(subject: Subject, outcome: Outcome) -> None:
    pyramid_checks.check_pyramid(outcome, subject.voxels, subject.watershed, **subject.options)


def _digests(subject: Subject, outcome: Outcome) -> None:
    own = subject.own_voxels
    if own is None:
        outcome.skipped = "the graph has no fork yet"
        return
    digest_checks.check_digests(outcome, own)


def _lineage(subject: Subject, outcome: Outcome) -> None:
    own, base = subject.own_voxels, volumes.base_volume(subject.fork.base)
    if own is None or base is None:
        outcome.skipped = "the graph has no fork yet"
        return
    digest_checks.check_lineage(outcome, own, base, subject.table)


def _pair(subject: Subject, outcome: Outcome) -> None:
    pair_checks.check_pair(outcome, subject)


def _progress(subject: Subject, outcome: Outcome) -> None:
    ingest_checks.check_progress(outcome, subject.table, subject.layout, subject.grid)
    watershed_checks.check_watershed_files(outcome, subject.fork.watershed_url)


def _operations(subject: Subject, outcome: Outcome) -> None:
    ingest_checks.check_operations(outcome, subject.table)


ALL_CHECKS: dict[str, Check] = {
    "meta": Check("meta and version rows can be read and fit the watershed", "rows", _meta),
    "ids": Check("node ids lie inside the grid and behind their counters", "nodes", None),
    "hierarchy": Check("parents and children agree; each supervoxel is under one current root", "nodes", None),
    "skip_connections": Check("parents are at the layer that the cross edges ask for", "nodes", None),
    "edge_files": Check("edge files are readable, symmetric, and of supervoxels of the graph", "edges", None),
    "cross_edges": Check("cross edges equal those recomputed from the active atomic edges", "edges", None),
    "atomic_cross_edges": Check("layer 2 nodes of the ingest keep their atomic cross edges", "edges", None),
    "connectivity": Check("siblings are connected, and roots are the components of the active edges", "roots", None),
    "inf_edges": Check("no edge of affinity inf joins two roots", "edges", None),
    "voxels": Check("ids in the voxels are the live leaves, each in one piece inside its chunk", "chunks", _voxels),
    "base": Check("the base equals the watershed and was populated to the end", "blocks", _base),
    "source": Check("the watershed has not changed since the base was made to refer to it", "objects", _source),
    "fork": Check("the fork can be read and, before edits, shows the base", "blocks", _fork),
    "pair": Check("table and fork know the same operations", "operations", _pair),
    "digests": Check("what edits and downsampling wrote to the fork is as it was written", "storage chunks", _digests),
    "lineage": Check("ids of edited voxels descend from the base's ids at these voxels", "storage chunks", _lineage),
    "pyramid": Check("every mip is the downsampled mip below it", "blocks", _pyramid),
    "progress": Check("every chunk has its done-marker, no chunk outside the grid has one", "chunks", _progress),
    "operations": Check("no lock outlives its operation; successful operations name their roots", "rows", _operations),
}

CHECKS: dict[str, str] = {name: check.description for name, check in ALL_CHECKS.items()}
"""Name and description of every check, in the order in which they run."""
