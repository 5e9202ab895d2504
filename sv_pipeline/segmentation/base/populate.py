"""Populates a base: the plan, one task, and the end. The transfer of voxels is in `transfer`.

These are the methods of `config.PopulateMethod`:

- *parts*: each task writes a private store, and one process merges all of them by reference;
- *direct*: each task is one atomic commit to the base, or several if it does not fit the memory of a worker;
- *coordinator*: tasks commit through one DistributedCoordinatorServer. It has no atomic commits, so only the marker,
  which is written afterwards, says that a task is done;
- *reference* and *auto*: as parts, but the base refers to the watershed's chunks instead of copying them (`referring`).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.errors import ConfigError, InputError, NotReadyError
from sv_pipeline.failpoints import reach
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.memory import DEFAULT_BUDGET_MB, memory_budget
from sv_pipeline.segmentation.base import markers, parts
from sv_pipeline.segmentation.base.base import Base, BaseInfo, write_volume_info
from sv_pipeline.segmentation.base.failure_details import base_details, task_details
from sv_pipeline.segmentation.base.layout import check_alignment, populate_layer, task_box
from sv_pipeline.segmentation.base.markers import PopulateMeta, task_name
from sv_pipeline.segmentation.base.referring import joined
from sv_pipeline.segmentation.base.source_record import find_references, sources_of, write_source_record
from sv_pipeline.segmentation.base.transfer import in_commits, task_pieces
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE, known_address
from sv_pipeline.storage.error_dump import dump_errors
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.retry import retry_transport

__all__ = [
    "PopulatePlan",
    "PopulateReport",
    "TaskReport",
    "commit_task",
    "finish_populate",
    "populate_plan",
    "populate_task",
]

Triple = tuple[int, int, int]

COUNTS = ("referred", "copied")
"""Names of the numbers of storage chunks that a task counts."""
ATTEMPTS = 5
COORDINATOR_PAUSE = 2.0
"""Upper limit of the first pause of a task that commits through a coordinator, in seconds: the coordinator's lease of a
dead worker blocks the other workers for ten seconds, which all pauses of a task together have to outlast."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PopulatePlan:
    """The plan of a populate, as plain values that can be printed and sent to other processes."""

    base: BaseInfo
    layer: int
    grid: ChunkGrid
    method: PopulateMethod
    coordinator_address: str | None
    missing: tuple[Triple, ...]
    """Tasks that are not done, as chunk coordinates at ``layer``."""
    memory: int = DEFAULT_BUDGET_MB << 20
    """Memory in bytes that a task may take; a larger one is committed in pieces."""

    @property
    def n_tasks(self) -> int:
        """Number of all tasks, including those that are done."""
        return self.grid.count(self.layer)


@dataclass(frozen=True)
class TaskReport:
    """The result of one populate task."""

    coordinate: Triple
    already_done: bool
    shapes: tuple[Triple, ...]
    """Shape of the box of the task at each mip, in voxels."""
    seconds: float
    referred: int = 0
    """Number of storage chunks that are references to the watershed."""
    copied: int = 0
    """Number of storage chunks of the same mips that were copied because they could not be referred to."""


@dataclass(frozen=True)
class PopulateReport:
    """The result of a finished populate."""

    n_tasks: int
    merged_parts: int
    """Number of parts that this call merged."""
    generation: int
    """Latest generation of the base."""
    referred: int = 0
    """Number of storage chunks that are references to the watershed."""
    copied: int = 0
    """Number of storage chunks of the same mips that were copied because they could not be referred to."""


def populate_plan(
    base: Base,
    grid: ChunkGrid,
    config: OcdbtConfig,
    *,
    only: npt.ArrayLike | None = None,
    memory: int | None = None,
) -> PopulatePlan:
    """Divide the populate into tasks and list those that are not done. The first plan fixes the division.

    If the base is complete, or other software populates it, no task is missing, whatever the chunks of the graph.

    Parameters
    ----------
    only
        Chunk coordinates of the only tasks to look at, shape (n, 3), for a worker that does a few of very many tasks.
        The default is all tasks.
    memory
        Memory in bytes that a task may take. Default: that of the environment (`memory_budget`).

    Raises
    ------
    ConfigError
        If the base is being populated for another grid, or its storage chunks do not fit the tasks.
    InputError
        If the grid is not that of the volume.
    NotFoundError
        If there is no base.
    """
    info, url = base.info(), base.watershed_url
    if grid.bounds != info.volume.bounds:
        raise InputError(
            f"the chunk grid covers {grid.bounds}, but the volume at {url} is {info.volume.bounds}.",
            remedy="Make the grid from the bounds of the volume.",
        )
    if info.made_elsewhere:
        layer = populate_layer(base.effective(config), grid)
        return PopulatePlan(info, layer, grid, config.populate_method, config.coordinator_address, missing=())
    recorded = base.division()
    layer = populate_layer(base.effective(config), grid) if recorded is None else recorded.layer
    complete = recorded is not None and base.is_complete()
    if recorded is not None and complete:
        grid = recorded.grid
    else:
        check_alignment(info.volume, grid, layer)
        markers.claim_meta(url, PopulateMeta.of(layer, grid))
    if complete:
        missing: list[Triple] = []
    elif only is None:
        missing = markers.chosen_tasks(grid, layer, ~markers.done_mask(url, grid.shape(layer)))
    else:
        tasks = [_triple(coordinate) for coordinate in np.asarray(only).reshape(-1, 3)]
        found = markers.read_markers(url, tasks)
        missing = [task for task, marker in zip(tasks, found, strict=True) if marker is None]
    return PopulatePlan(
        base=info,
        layer=layer,
        grid=grid,
        method=config.populate_method,
        coordinator_address=config.coordinator_address,
        missing=tuple(missing),
        memory=memory_budget() if memory is None else memory,
    )


def populate_task(
    plan: PopulatePlan, coordinate: Triple, *, coordinator_address: str | None = None, attempts: int = ATTEMPTS
) -> TaskReport:
    """Copy one task's voxels at all mips into the base, then mark it done. Safe to repeat, and to run twice at once.

    Parameters
    ----------
    plan
        The result of `populate_plan`.
    coordinate
        Chunk coordinate at the plan's layer.
    coordinator_address
        host:port of the coordinator, for that method. The default is that of the plan, then that in the environment
        variable SV_PIPELINE_COORDINATOR.
    attempts
        Number of attempts before a transport error is raised.

    Raises
    ------
    ConfigError
        If the coordinator method is chosen and there is no address.
    UnavailableError
        If the storage or the coordinator does not answer after all attempts.
    """
    coordinate = _triple(coordinate)
    name = task_name(coordinate)
    address = _coordinator_address(plan, coordinator_address) if plan.method is PopulateMethod.COORDINATOR else None
    started = time.monotonic()
    with dump_errors(f"populate_{name}", lambda: task_details(plan, coordinate, address)):
        already = markers.read_marker(plan.base.watershed_url, coordinate) is not None
        if already:
            counts: dict[str, int] = {}
        elif plan.method in (PopulateMethod.DIRECT, PopulateMethod.COORDINATOR):
            counts = _populate_base(plan, coordinate, address, attempts)
        else:
            counts = _populate_part(plan, coordinate, attempts)
        return TaskReport(coordinate, already, _shapes(plan, coordinate), time.monotonic() - started, **counts)


def _populate_part(plan: PopulatePlan, coordinate: Triple, attempts: int) -> dict[str, int]:
    """Make a part; return the numbers of referred and copied chunks, or nothing if another worker was faster."""
    base, url, name = plan.base, plan.base.watershed_url, task_name(coordinate)

    def write() -> tuple[str, dict[str, int]] | None:
        # Each attempt uses a new store, so that the remains of a failed one do not matter.
        attempt = uuid4().hex[:12]
        spec = base.part_spec(name, attempt, creating=True)
        try:
            if base.refers and plan.method is not PopulateMethod.PARTS:
                counts = _refer(plan, coordinate, attempt, spec)
            else:
                counts = {}
                write_volume_info(spec, base.volume)
                commit_task(plan, coordinate, ocdbt.OcdbtStore(spec), atomic=True)
        except Exception:
            parts.delete_attempt(url, coordinate, attempt)
            if markers.read_marker(url, coordinate) is None:
                raise
            return None  # another worker was faster, and has removed this attempt
        else:
            return attempt, counts

    written = retry_transport(write, attempts=attempts, what=f"populate task {name}")
    if written is not None:
        attempt, counts = written
        if markers.write_marker(url, coordinate, {**_marker(plan, coordinate), "attempt": attempt, **counts}):
            parts.clean_task(url, coordinate, winner=attempt)
            return counts
        parts.delete_attempt(url, coordinate, attempt)
    _logger.info("task %s was done by another worker meanwhile", name)
    return {}


def _refer(plan: PopulatePlan, coordinate: Triple, attempt: str, spec: dict[str, Any]) -> dict[str, int]:
    """Make a part of references to the watershed, and write the chunks that have to be copied or downsampled."""
    base = plan.base
    found = find_references(base, sources_of(base), plan.grid, plan.layer, coordinate)
    references = joined(list(found.values()))
    if references is not None:
        parts.begin_referring(base, coordinate, attempt, references)
    others = {mip: part.others for mip, part in found.items()}
    n_others = sum(map(len, others.values()))
    if references is None or n_others or len(base.referred) < base.n_mips:
        write_volume_info(spec, base.volume)
        commit_task(plan, coordinate, ocdbt.OcdbtStore(spec), atomic=True, chunks=others)
    write_source_record(base, coordinate, attempt, list(found.values()))
    return {"referred": sum(map(len, found.values())), "copied": n_others}


def _populate_base(plan: PopulatePlan, coordinate: Triple, address: str | None, attempts: int) -> dict[str, int]:
    url, name = plan.base.watershed_url, task_name(coordinate)
    spec = plan.base.spec(coordinator=address)
    retry_transport(
        lambda: commit_task(plan, coordinate, ocdbt.OcdbtStore(spec), atomic=address is None, evidence=name),
        attempts=attempts,
        base_delay=0.4 if address is None else COORDINATOR_PAUSE,
        what=f"populate task {name}",
    )
    markers.write_marker(url, coordinate, _marker(plan, coordinate))
    return {}


def _shapes(plan: PopulatePlan, coordinate: Triple) -> tuple[Triple, ...]:
    volume = plan.base.volume
    return tuple(task_box(volume, mip, plan.grid, plan.layer, coordinate).shape for mip in range(plan.base.n_mips))


def commit_task(
    plan: PopulatePlan,
    coordinate: Triple,
    store: ocdbt.OcdbtStore,
    *,
    atomic: bool,
    evidence: str | None = None,
    chunks: Mapping[int, npt.NDArray[np.int64]] | None = None,
) -> None:
    """Write a task, in one commit if it fits the memory, else in several; the last one writes the evidence."""
    base = plan.base
    pieces = task_pieces(base, plan.grid, plan.layer, coordinate, budget=plan.memory, chunks=chunks)
    groups = in_commits(pieces, plan.memory)
    group = next(groups, [])
    while True:
        following = next(groups, None)
        # A coordinator refuses atomic transactions over several keys, which is harmless for whole storage chunks. Its
        # workers write the manifest for each other, so they cannot wait for a file lock either.
        with store.transaction() if atomic else ts.Transaction() as transaction:
            targets = [store.array(mip).with_transaction(transaction) for mip in range(base.n_mips)]
            for piece in group:
                piece.write(targets)
            if evidence is not None and following is None:
                store.kv.with_transaction(transaction).write(parts.MERGED_KEYS + evidence, b"{}").result()
        if following is None:
            return
        reach("populate commit")
        group = following


def finish_populate(
    plan: PopulatePlan, *, parts_per_commit: int | None = None, keys_per_commit: int | None = None
) -> PopulateReport:
    """Merge the parts, clean up, and declare the base complete. Safe to repeat.

    Parameters
    ----------
    parts_per_commit
        Number of parts to merge in one commit. By default, parts are merged in commits of neighbouring keys, or in a
        single commit if there are few keys.
    keys_per_commit
        Largest number of keys in such a commit, about. By default it follows from the memory that commits need.

    Raises
    ------
    NotReadyError
        If tasks are missing; the message names them.
    """
    base = plan.base
    if base.made_elsewhere:
        return PopulateReport(plan.n_tasks, 0, current_version(ocdbt.base_folder(base.watershed_url)).generation)
    with dump_errors("finish_populate", lambda: base_details(plan)):
        return _finish(plan, parts_per_commit, keys_per_commit)


def _finish(plan: PopulatePlan, parts_per_commit: int | None, keys_per_commit: int | None) -> PopulateReport:
    base = plan.base
    complete = markers.read_complete(base.watershed_url)
    if complete is not None:
        counts = {name: int(complete.get(name, 0)) for name in COUNTS}
        return PopulateReport(plan.n_tasks, 0, int(complete["generation"]), **counts)
    require_tasks_done(plan)
    tasks = [_triple(coordinate) for coordinate in plan.grid.coordinates(plan.layer)]
    winners, counts = markers.read_results(base.watershed_url, tasks, COUNTS)
    if parts_per_commit is None:
        merged = parts.merge_in_ranges(base, winners, plan.grid, plan.layer, keys_per_commit)
    else:
        waiting = list(winners.items())
        groups = [dict(waiting[i : i + parts_per_commit]) for i in range(0, len(waiting), parts_per_commit)]
        merged = sum(parts.merge_parts(base, group) for group in groups)
    parts.remove_stale_parts(base, winners)
    generation = current_version(ocdbt.base_folder(base.watershed_url)).generation
    numbers = {"n_tasks": len(tasks), "generation": generation, **counts}
    markers.write_complete(base.watershed_url, {**numbers, "time": datetime.now(UTC).isoformat()})
    return PopulateReport(len(tasks), merged, generation, **counts)


def require_tasks_done(plan: PopulatePlan) -> None:
    """Raise NotReadyError, with the missing tasks, unless each task has a marker."""
    mask = ~markers.done_mask(plan.base.watershed_url, plan.grid.shape(plan.layer))
    missing = [task_name(task) for task in markers.chosen_tasks(plan.grid, plan.layer, mask)]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise NotReadyError(
            f"{len(missing)} of {plan.n_tasks} populate tasks of {plan.base.watershed_url} are not done "
            f"(layer {plan.layer}: {shown}).",
            remedy="Run the populate tasks that are missing, then finish the populate.",
        )


def _coordinator_address(plan: PopulatePlan, address: str | None) -> str:
    found = address or known_address(plan.coordinator_address)
    if not found:
        raise ConfigError(
            "the populate method is 'coordinator', but this task has no coordinator address; it refuses to run, "
            "because writers that bypass the coordinator contend for the manifest.",
            remedy=f"Set ocdbt_config.coordinator_address or {ADDRESS_VARIABLE} to host:port of a running coordinator "
            "(python -m sv_pipeline.storage.coordinator), or choose populate_method: parts.",
        )
    return found


def _marker(plan: PopulatePlan, coordinate: Triple) -> dict[str, Any]:
    return {
        "method": plan.method.value,
        "shapes": _shapes(plan, coordinate),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "time": datetime.now(UTC).isoformat(),
    }


def _triple(values: Any) -> Triple:
    x, y, z = (int(value) for value in np.asarray(values).ravel())
    return (x, y, z)
