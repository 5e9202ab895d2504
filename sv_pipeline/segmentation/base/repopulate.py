"""Writes the voxels of one populate task again, whether its part is merged already or not. Changes no marker.

The voxels are the same as before, since the watershed does not change. So readers and forks see no difference, except
where a stored chunk was damaged.

| state of the task | what is done |
| --- | --- |
| not done | it is populated as in an ingest |
| done, its part is not merged | the same keys are written once more to the part that won |
| merged, or populated without parts | the same keys are written once more to the base, in one commit |
"""

from __future__ import annotations

import time

from sv_pipeline.segmentation.base import markers, parts
from sv_pipeline.segmentation.base.layout import task_box
from sv_pipeline.segmentation.base.markers import task_name
from sv_pipeline.segmentation.base.populate import PopulatePlan, TaskReport, commit_task, populate_task
from sv_pipeline.segmentation.base.source_record import find_references, sources_of
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.retry import retry_transport

__all__ = ["repopulate_task"]

Triple = tuple[int, int, int]


def repopulate_task(plan: PopulatePlan, coordinate: Triple, *, coordinator_address: str | None = None) -> TaskReport:
    """Populate a task, or write its voxels again if it is done.

    Chunks of the base that are references to the watershed stay as they are.

    Parameters
    ----------
    plan
        The result of `populate.populate_plan`.
    coordinate
        Chunk coordinate at the plan's layer.
    coordinator_address
        host:port of the coordinator, for a task that is not done.
    """
    base, started = plan.base, time.monotonic()
    marker = markers.read_marker(base.watershed_url, coordinate)
    if marker is None:
        return populate_task(plan, coordinate, coordinator_address=coordinator_address)
    attempt = marker.get("attempt")
    waiting = attempt is not None and task_name(coordinate) not in parts.merged_tasks(base)
    spec = base.part_spec(task_name(coordinate), str(attempt)) if waiting else base.spec()
    found = find_references(base, sources_of(base), plan.grid, plan.layer, coordinate) if base.refers else {}
    others = {mip: part.others for mip, part in found.items()}
    retry_transport(
        lambda: commit_task(plan, coordinate, ocdbt.OcdbtStore(spec), atomic=True, chunks=others),
        what=f"writing populate task {task_name(coordinate)} again",
    )
    shapes = [task_box(base.volume, mip, plan.grid, plan.layer, coordinate).shape for mip in range(base.n_mips)]
    return TaskReport(coordinate, already_done=True, shapes=tuple(shapes), seconds=time.monotonic() - started)
