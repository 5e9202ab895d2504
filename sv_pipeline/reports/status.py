"""The progress of an ingest as a value: for each stage and layer the chunks, done and failed ones, and the speed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.ingest import progress, watershed
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import layout
from sv_pipeline.segmentation.base.referring import method_cost
from sv_pipeline.storage import kv

__all__ = ["GraphStatus", "StageStatus", "graph_status"]


_FINISHED = {"done", "built elsewhere"}


@dataclass(frozen=True)
class StageStatus:
    """One row of the status: a stage of the watershed, a layer of the graph, or the base's voxels."""

    name: str
    chunks: int
    done: int
    failed: int = 0
    nodes: int = 0
    throughput: float | None = None
    """Chunks per second from the start of the first batch to the end of the last; None while unknown."""
    error: str | None = None
    """Message of the first failure, if there is one."""
    built_elsewhere: bool = False
    """Whether other software made it, so that there are no done-markers to count."""
    note: str | None = None
    """One line about how the stage is made, if there is something to know."""

    @property
    def state(self) -> str:
        """One of done, failed, partly, waiting, or built elsewhere."""
        if self.built_elsewhere:
            return "built elsewhere"
        if self.done >= self.chunks:
            return "done"
        if self.failed:
            return "failed"
        return "partly" if self.done else "waiting"


@dataclass(frozen=True)
class GraphStatus:
    """All stages of a graph, in their order."""

    graph_id: str
    stages: tuple[StageStatus, ...]
    forked: bool
    fork_wanted: bool = True
    """False for a graph without voxels of its own."""

    @property
    def complete(self) -> bool:
        """Whether all stages are finished and the fork exists, if the graph has one."""
        return (
            (self.forked or not self.fork_wanted)
            and bool(self.stages)
            and all(s.state in _FINISHED for s in self.stages)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return values that can be written as JSON."""
        rows = [{**asdict(s), "state": s.state} for s in self.stages]
        return {"graph_id": self.graph_id, "forked": self.forked, "complete": self.complete, "stages": rows}


def graph_status(dataset: Dataset) -> GraphStatus:
    """Determine the status from the done-markers alone: a chunk without a marker is not done."""
    try:
        grid = dataset.grid
    except InputError:
        return GraphStatus(dataset.graph_id, (), forked=False)
    mode = dataset.config.ingest.mode
    rows = [] if dataset.config.source is None else _watershed_rows(dataset)
    if mode is not IngestMode.VOXELS:
        try:
            by_layer = progress.layer_status(dataset.graph)
            elsewhere = progress.built_elsewhere(dataset.graph)
        except NotFoundError:
            by_layer, elsewhere = {}, False
        for layer in range(2, grid.n_layers + 1):
            status = by_layer.get(layer)
            rows.append(
                StageStatus(f"layer {layer}", grid.count(layer), 0, built_elsewhere=elsewhere)
                if status is None or elsewhere
                else StageStatus(
                    f"layer {layer}",
                    status.chunks,
                    status.done,
                    status.failed,
                    status.nodes,
                    status.throughput,
                    status.error,
                )
            )
    if mode is not IngestMode.GRAPH:
        rows.append(_voxels_row(dataset))
    return GraphStatus(
        dataset.graph_id,
        tuple(rows),
        forked=dataset.fork.exists(),
        fork_wanted=mode is not IngestMode.GRAPH,
    )


def _watershed_rows(dataset: Dataset) -> list[StageStatus]:
    # Only the markers are read, not the source, which may be large, remote or deleted.
    total = dataset.grid.count(2)
    url, passes = dataset.watershed_url, watershed.WatershedPass
    done = {stage: kv.list_keys(url, watershed.markers_folder(stage)) for stage in passes}
    return [StageStatus(f"watershed: {stage}", total, len(keys)) for stage, keys in done.items()]


def _voxels_row(dataset: Dataset) -> StageStatus:
    base = dataset.base
    with suppress(NotFoundError):
        if base.info().made_elsewhere:
            return StageStatus("voxels", 0, 0, built_elsewhere=True)
    meta = base.division()
    config = base.effective(dataset.config.ocdbt_config)
    layer = layout.populate_layer(config, dataset.grid) if meta is None else meta.layer
    tasks = (dataset.grid if meta is None else meta.grid).count(layer)
    done = tasks if base.is_complete() else len(base.done_tasks())
    return StageStatus(f"voxels (layer {layer})", tasks, done, note=_cost(dataset))


def _cost(dataset: Dataset) -> str:
    """Describe in one line which voxels the base stores and which it refers to."""
    try:
        base = dataset.base.info()
    except NotFoundError:
        return method_cost(dataset.config.ocdbt_config.populate_method)
    if not base.refers:
        return "all voxels are copied"
    counts = dataset.base.counts()
    chunks = f" ({counts['referred']:,} storage chunks, {counts['copied']:,} copied)" if counts else ""
    mips = ", ".join(map(str, base.referred))
    rest = "" if len(base.referred) == base.n_mips else "; the other mips are stored"
    return f"mips {mips} are referred to where they lie in the watershed, which must not change{chunks}{rest}"
