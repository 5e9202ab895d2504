"""The list of checks, and the function that runs them. The checks themselves are in their own modules."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sv_pipeline.arguments import parse_callback, parse_count, parse_names
from sv_pipeline.errors import ConfigError, SvPipelineError, UnavailableError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.storage.wall import wall
from sv_pipeline.table.interface import Table
from sv_pipeline.verify import (
    digest_checks,
    edge_checks,
    edge_file_checks,
    ingest_checks,
    pair_checks,
    pyramid_checks,
    source_checks,
    table_checks,
    volumes,
    voxel_checks,
    watershed_checks,
)
from sv_pipeline.verify.dataset_under_test import Blocked, Subject
from sv_pipeline.verify.report import CheckResult, Outcome, VerifyReport

__all__ = ["CHECKS", "CheckResult", "VerifyReport", "verify"]

logger = logging.getLogger(__name__)

STEPS_PER_CHECK = 100
"""Number of steps that the progress callback counts for each check."""


@dataclass(frozen=True)
class _Check:
    description: str
    unit: str
    """Unit of ``checked``, such as nodes or blocks."""
    run: Callable[[Subject, Outcome], None]


def _meta(subject: Subject, outcome: Outcome) -> None:
    ingest_checks.check_meta(outcome, subject.table, subject.meta, subject.volume, subject.fork.watershed_url)


def _ids(subject: Subject, outcome: Outcome) -> None:
    table_checks.check_ids(outcome, subject.nodes, subject.grid, *subject.counters)


def _hierarchy(subject: Subject, outcome: Outcome) -> None:
    table_checks.check_hierarchy(outcome, subject.nodes)


def _skip_connections(subject: Subject, outcome: Outcome) -> None:
    edge_checks.check_skip_connections(outcome, subject.nodes, subject.active)


def _cross_edges(subject: Subject, outcome: Outcome) -> None:
    edge_checks.check_cross_edges(outcome, subject.nodes, subject.active)


def _connectivity(subject: Subject, outcome: Outcome) -> None:
    edge_checks.check_connectivity(outcome, subject.nodes, subject.active)


def _inf_edges(subject: Subject, outcome: Outcome) -> None:
    edge_checks.check_inf_edges(outcome, subject.nodes, subject.active)


def _atomic_cross_edges(subject: Subject, outcome: Outcome) -> None:
    edge_checks.check_atomic_cross_edges(outcome, subject.nodes, subject.active)


def _edge_files(subject: Subject, outcome: Outcome) -> None:
    edge_file_checks.check_edge_files(outcome, subject.nodes, subject.edges)


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
    ingest_checks.check_operations(outcome, subject.table, subject.nodes)


_CHECKS: dict[str, _Check] = {
    "meta": _Check("meta and version rows can be read and fit the watershed", "rows", _meta),
    "ids": _Check("node ids lie inside the grid and behind their counters", "nodes", _ids),
    "hierarchy": _Check("parents and children agree; each supervoxel is under one current root", "nodes", _hierarchy),
    "skip_connections": _Check("parents are at the layer that the cross edges ask for", "nodes", _skip_connections),
    "edge_files": _Check("edge files are readable, symmetric, and of supervoxels of the graph", "edges", _edge_files),
    "cross_edges": _Check("cross edges equal those recomputed from the active atomic edges", "edges", _cross_edges),
    "atomic_cross_edges": _Check(
        "layer 2 nodes of the ingest keep their atomic cross edges", "edges", _atomic_cross_edges
    ),
    "connectivity": _Check(
        "siblings are connected, and roots are the components of the active edges", "roots", _connectivity
    ),
    "inf_edges": _Check("no edge of affinity inf joins two roots", "edges", _inf_edges),
    "voxels": _Check("ids in the voxels are the live leaves, each in one piece inside its chunk", "chunks", _voxels),
    "base": _Check("the base equals the watershed and was populated to the end", "blocks", _base),
    "source": _Check("the watershed has not changed since the base was made to refer to it", "objects", _source),
    "fork": _Check("the fork can be read and, before edits, shows the base", "blocks", _fork),
    "pair": _Check("table and fork know the same operations", "operations", _pair),
    "digests": _Check("what edits and downsampling wrote to the fork is as it was written", "storage chunks", _digests),
    "lineage": _Check("ids of edited voxels descend from the base's ids at these voxels", "storage chunks", _lineage),
    "pyramid": _Check("every mip is the downsampled mip below it", "blocks", _pyramid),
    "progress": _Check("every chunk has its done-marker, no chunk outside the grid has one", "chunks", _progress),
    "operations": _Check("no lock outlives its operation; successful operations name their roots", "rows", _operations),
}

CHECKS: dict[str, str] = {name: check.description for name, check in _CHECKS.items()}
"""Name and description of every check, in the order in which they run."""


def verify(
    table: Table,
    fork: Fork,
    *,
    checks: Sequence[str] | None = None,
    sample: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    within: Sequence[Box] | None = None,
) -> VerifyReport:
    """Prove that a graph and its segmentation are sound. Nothing is changed.

    Parameters
    ----------
    table
        The graph's table.
    fork
        The graph's own version of the voxels; it may not exist.
    checks
        Names of the checks to run, out of :data:`CHECKS`; None = all.
    sample
        Number of chunks, chosen at random, whose voxels are checked (for the base and the mips: number of blocks);
        None = all.
    workers
        Number of threads that read and check voxels.
    progress
        Called with (steps done, all steps).
    seed
        Seed of the random choice of chunks.
    within
        Boxes in voxels of mip 0, to which the checks `digests` and `lineage` of the fork's own storage chunks are
        limited; None = everywhere.

    Raises
    ------
    ConfigError
        If a name in ``checks`` is not the name of a check.
    InputError
        If an argument has the wrong type or value.
    UnavailableError
        If the storage or the table does not answer.
    """
    checks = None if checks is None else parse_names(checks, "checks")
    sample = None if sample is None else parse_count(sample, "number of chunks to look at", least=1)
    workers, seed = parse_count(workers, "number of workers", least=1), parse_count(seed, "seed")
    progress = parse_callback(progress, "progress")
    chosen = list(_CHECKS) if checks is None else [name for name in _CHECKS if name in set(checks)]
    if checks is not None and (unknown := sorted(set(checks) - set(_CHECKS))):
        raise ConfigError(f"there is no check {', '.join(unknown)}.", remedy=f"Checks are: {', '.join(_CHECKS)}.")
    subject = Subject(table, fork, sample, seed, workers, within=within)
    started = time.monotonic()
    results = []
    for number, name in enumerate(chosen):
        subject.advance = _sub_progress(progress, number, len(chosen))
        results.append(_run(name, subject))
        if progress is not None:
            progress((number + 1) * STEPS_PER_CHECK, len(chosen) * STEPS_PER_CHECK)
    return VerifyReport(fork.graph_id, tuple(results), time.monotonic() - started, sample)


def _run(name: str, subject: Subject) -> CheckResult:
    check = _CHECKS[name]
    outcome = Outcome(name)
    blocked = False
    started = time.monotonic()
    try:
        with wall():
            check.run(subject, outcome)
    except Blocked as reason:
        outcome.skipped, blocked = str(reason), True
    except UnavailableError:
        raise
    except SvPipelineError as error:
        outcome.error(str(error), f"graph {subject.fork.graph_id}")
    seconds = time.monotonic() - started
    passed = not outcome.has_errors and not blocked
    logger.info(
        "check %s of graph %s: %s in %.2f s", name, subject.fork.graph_id, "passed" if passed else "FAILED", seconds
    )
    return CheckResult(
        name, check.description, passed, outcome.checked, check.unit, tuple(outcome.findings), seconds, outcome.skipped
    )


def _sub_progress(
    progress: Callable[[int, int], None] | None, number: int, count: int
) -> Callable[[int, int], None] | None:
    """Progress callback for one check, which counts its steps as part of those of all checks."""
    if progress is None:
        return None

    def advance(done: int, total: int) -> None:
        progress(number * STEPS_PER_CHECK + STEPS_PER_CHECK * done // max(total, 1), count * STEPS_PER_CHECK)

    return advance
