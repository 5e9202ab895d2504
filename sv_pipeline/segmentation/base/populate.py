"""Owns the populate of a base: the plan, one task, and the end of it. How voxels get there is in `transfer`.

Three methods, by `config.PopulateMethod`. *Parts*: each task writes a private store, one process merges all of them by
reference. *Direct*: each task is one atomic commit to the base. *Coordinator*: tasks commit through one
DistributedCoordinatorServer, which cannot do atomic commits; so only the marker, written after, says that a task is in.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.errors import ConfigError, InputError, NotReadyError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base import markers, parts
from sv_pipeline.segmentation.base.base import Base, BaseInfo, write_volume_info
from sv_pipeline.segmentation.base.layout import check_alignment, populate_layer, task_box
from sv_pipeline.segmentation.base.markers import PopulateMeta, task_name
from sv_pipeline.segmentation.base.transfer import write_task
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE
from sv_pipeline.storage.error_dump import dump_errors
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.retry import retry_transport

__all__ = ["PopulatePlan", "PopulateReport", "TaskReport", "finish_populate", "populate_plan", "populate_task"]

Triple = tuple[int, int, int]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PopulatePlan:
    """What is to be done to populate a base. Plain values: it can be printed and sent to other processes."""

    base: BaseInfo
    layer: int
    grid: ChunkGrid
    method: PopulateMethod
    coordinator_address: str | None
    missing: tuple[Triple, ...]
    """Tasks without a marker: chunk coordinates at ``layer``."""

    @property
    def n_tasks(self) -> int:
        """Number of tasks, done ones included."""
        return self.grid.count(self.layer)


@dataclass(frozen=True)
class TaskReport:
    """What one populate task did."""

    coordinate: Triple
    already_done: bool
    shapes: tuple[Triple, ...]
    """Voxels written, per mip."""
    seconds: float


@dataclass(frozen=True)
class PopulateReport:
    """What a finished populate amounts to."""

    n_tasks: int
    merged_parts: int
    """Parts that this call merged."""
    generation: int
    """Of the base."""


def populate_plan(
    base: Base, grid: ChunkGrid, config: OcdbtConfig, *, only: npt.ArrayLike | None = None
) -> PopulatePlan:
    """Divide the populate into tasks and list those to be done. The first plan fixes the division.

    A base that is complete has nothing missing, for a graph with whatever chunks.

    Parameters
    ----------
    only
        Look at these tasks alone, shape (n, 3): for a worker that has a few of very many. Default: all.

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
            remedy="Make the grid of the volume's own bounds.",
        )
    recorded = base.division()
    layer = populate_layer(base.effective(config), grid) if recorded is None else recorded.layer
    complete = recorded is not None and base.is_complete()
    if recorded is not None and complete:
        grid = recorded.grid
    else:
        check_alignment(info.volume, grid, layer)
        markers.claim_meta(url, PopulateMeta.of(layer, grid))
    tasks = [_triple(coordinate) for coordinate in (grid.coordinates(layer) if only is None else np.asarray(only))]
    if only is None:
        done = base.done_tasks()
    else:
        found = markers.read_markers(url, tasks)
        done = {task for task, marker in zip(tasks, found, strict=True) if marker is not None}
    return PopulatePlan(
        base=info,
        layer=layer,
        grid=grid,
        method=config.populate_method,
        coordinator_address=config.coordinator_address,
        missing=tuple(task for task in tasks if not complete and task not in done),
    )


def populate_task(
    plan: PopulatePlan, coordinate: Triple, *, coordinator_address: str | None = None, attempts: int = 5
) -> TaskReport:
    """Copy one task's voxels at all mips into the base, then mark it done. Safe to repeat, and to run twice at once.

    Parameters
    ----------
    plan
        From `populate_plan`.
    coordinate
        Chunk at the plan's layer.
    coordinator_address
        host:port, for the coordinator method; default: the plan's, then environment SV_PIPELINE_COORDINATOR.
    attempts
        How often a transport error is met before giving up.

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
    with dump_errors(f"populate_{name}", lambda: _details(plan, coordinate, address)):
        marker = markers.read_marker(plan.base.watershed_url, coordinate)
        if marker is not None:
            return TaskReport(coordinate, True, _shapes(plan, coordinate), time.monotonic() - started)
        if plan.method is PopulateMethod.PARTS:
            shapes = _populate_part(plan, coordinate, attempts)
        else:
            shapes = _populate_base(plan, coordinate, address, attempts)
        return TaskReport(coordinate, False, shapes, time.monotonic() - started)


def _populate_part(plan: PopulatePlan, coordinate: Triple, attempts: int) -> tuple[Triple, ...]:
    url, name = plan.base.watershed_url, task_name(coordinate)

    def write() -> tuple[str, tuple[Triple, ...]] | None:
        # A new store for each try: what a failed one has left behind is nobody's.
        attempt = uuid4().hex[:12]
        spec = ocdbt.part_spec(url, name, attempt, form=plan.base.form)
        try:
            write_volume_info(spec, plan.base.volume)
            return attempt, _commit(plan, coordinate, ocdbt.OcdbtStore(spec), atomic=True)
        except Exception:
            parts.delete_attempt(url, coordinate, attempt)
            if markers.read_marker(url, coordinate) is None:
                raise
            return None  # another worker was faster, and has cleaned up under our feet

    written = retry_transport(write, attempts=attempts, what=f"populate task {name}")
    if written is not None and markers.write_marker(url, coordinate, _marker(plan, written[1], attempt=written[0])):
        parts.clean_task(url, coordinate, winner=written[0])
        return written[1]
    _logger.info("task %s was done by another worker meanwhile", name)
    if written is not None:
        parts.delete_attempt(url, coordinate, written[0])
    return _shapes(plan, coordinate)


def _populate_base(plan: PopulatePlan, coordinate: Triple, address: str | None, attempts: int) -> tuple[Triple, ...]:
    url, name = plan.base.watershed_url, task_name(coordinate)
    spec = ocdbt.base_spec(url, coordinator=address)
    shapes = retry_transport(
        lambda: _commit(plan, coordinate, ocdbt.OcdbtStore(spec), atomic=address is None, evidence=name),
        attempts=attempts,
        # A lease that the coordinator gave to a worker that has died holds the others up for ten seconds.
        base_delay=0.2 if address is None else 1.0,
        what=f"populate task {name}",
    )
    markers.write_marker(url, coordinate, _marker(plan, shapes))
    return shapes


def _shapes(plan: PopulatePlan, coordinate: Triple) -> tuple[Triple, ...]:
    volume = plan.base.volume
    return tuple(task_box(volume, mip, plan.grid, plan.layer, coordinate).shape for mip in range(plan.base.n_mips))


def _commit(
    plan: PopulatePlan, coordinate: Triple, store: ocdbt.OcdbtStore, *, atomic: bool, evidence: str | None = None
) -> tuple[Triple, ...]:
    # A coordinator refuses atomic transactions over several keys; whole storage chunks make that harmless. Its workers
    # write the manifest for each other, so they cannot take turns either.
    with store.transaction() if atomic else ts.Transaction() as transaction:
        shapes = write_task(plan.base, plan.grid, plan.layer, coordinate, store, transaction)
        if evidence is not None:
            store.kv.with_transaction(transaction).write(parts.MERGED_KEYS + evidence, b"{}").result()
    return shapes


def finish_populate(plan: PopulatePlan, *, parts_per_commit: int | None = None) -> PopulateReport:
    """Merge the parts, clean up, and declare the base complete. Safe to repeat.

    Parameters
    ----------
    parts_per_commit
        Merge in increments of so many parts; default: all in one commit.

    Raises
    ------
    NotReadyError
        If tasks are missing; names them.
    """
    base = plan.base
    complete = markers.read_complete(base.watershed_url)
    if complete is not None:
        return PopulateReport(plan.n_tasks, 0, int(complete["generation"]))
    require_tasks_done(plan)
    tasks = [_triple(coordinate) for coordinate in plan.grid.coordinates(plan.layer)]
    found = zip(tasks, markers.read_markers(base.watershed_url, tasks), strict=True)
    winners = {task: marker["attempt"] for task, marker in found if marker is not None and "attempt" in marker}
    waiting = list(winners.items())
    step = parts_per_commit or max(1, len(waiting))
    merged = sum(parts.merge_parts(base, dict(waiting[i : i + step])) for i in range(0, len(waiting), step))
    parts.remove_stale_parts(base, winners)
    generation = current_version(ocdbt.base_folder(base.watershed_url)).generation
    markers.write_complete(
        base.watershed_url, {"n_tasks": len(tasks), "generation": generation, "time": datetime.now(UTC).isoformat()}
    )
    return PopulateReport(len(tasks), merged, generation)


def require_tasks_done(plan: PopulatePlan) -> None:
    """Raise NotReadyError, with the tasks to run, unless each has a marker."""
    done = markers.done_tasks(plan.base.watershed_url)
    tasks = [_triple(coordinate) for coordinate in plan.grid.coordinates(plan.layer)]
    missing = [task_name(task) for task in tasks if task not in done]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise NotReadyError(
            f"{len(missing)} of {len(tasks)} populate tasks of {plan.base.watershed_url} are not done "
            f"(layer {plan.layer}: {shown}).",
            remedy="Run the populate tasks that are missing, then finish the populate.",
        )


def _coordinator_address(plan: PopulatePlan, address: str | None) -> str:
    found = address or plan.coordinator_address or os.environ.get(ADDRESS_VARIABLE)
    if not found:
        raise ConfigError(
            "the populate method is 'coordinator', but this task has no coordinator address; it refuses to run, "
            "because writers that bypass the coordinator contend for the manifest.",
            remedy=f"Set ocdbt_config.coordinator_address or {ADDRESS_VARIABLE} to host:port of a running coordinator "
            "(python -m sv_pipeline.storage.coordinator), or choose populate_method: parts.",
        )
    return found


def _marker(plan: PopulatePlan, shapes: tuple[Triple, ...], *, attempt: str | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "method": plan.method.value,
        "shapes": shapes,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "time": datetime.now(UTC).isoformat(),
    }
    return content if attempt is None else {**content, "attempt": attempt}


def _details(plan: PopulatePlan, coordinate: Triple, address: str | None) -> dict[str, Any]:
    base = plan.base
    boxes = [task_box(base.volume, mip, plan.grid, plan.layer, coordinate) for mip in range(base.n_mips)]
    spec = ocdbt.base_spec(base.watershed_url, coordinator=address)
    return {
        "watershed": base.watershed_url,
        "layer": plan.layer,
        "coordinate": coordinate,
        "method": plan.method.value,
        "source_mips": base.source_mips,
        "mips": [
            {
                "mip": mip,
                "key": base.volume.scales[mip].key,
                "box": str(box),
                "shape": box.shape,
                "storage_chunk": base.volume.scales[mip].chunk_size,
                "spec": ocdbt.array_spec(spec, mip),
            }
            for mip, box in enumerate(boxes)
        ],
    }


def _triple(values: Any) -> Triple:
    x, y, z = (int(value) for value in np.asarray(values).ravel())
    return (x, y, z)
