"""How far an ingest is, as a value: per stage and layer the chunks, what is done, what failed, and how fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sv_pipeline.engine import stages
from sv_pipeline.engine.batches import Stage
from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.ingest import progress, watershed
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation import populate
from sv_pipeline.segmentation.fork import fork_exists

__all__ = ["GraphStatus", "StageStatus", "graph_status"]


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
    """The first failure, where there is one."""

    @property
    def state(self) -> str:
        """done, failed, partly, or waiting."""
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

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.forked and all(s.state == "done" for s in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        rows = [{**asdict(s), "state": s.state} for s in self.stages]
        return {"graph_id": self.graph_id, "forked": self.forked, "complete": self.complete, "stages": rows}


def graph_status(dataset: Dataset) -> GraphStatus:
    """The status out of the done-markers alone: what no marker shows is not done."""
    rows: list[StageStatus] = []
    if stages.needs_watershed(dataset):
        rows += _watershed_rows(dataset)
    try:
        grid = dataset.grid
    except InputError:
        return GraphStatus(dataset.graph_id, tuple(rows), forked=False)
    if dataset.config.ingest.mode.value != "voxels":
        try:
            by_layer = progress.layer_status(dataset.graph)
        except NotFoundError:
            by_layer = {}
        for layer in range(2, grid.n_layers + 1):
            status = by_layer.get(layer)
            rows.append(
                StageStatus(f"layer {layer}", grid.count(layer), 0)
                if status is None
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
    if dataset.config.ingest.mode.value != "graph":
        rows.append(_voxels_row(dataset))
    return GraphStatus(dataset.graph_id, tuple(rows), fork_exists(dataset.watershed_url, dataset.graph_id))


def _watershed_rows(dataset: Dataset) -> list[StageStatus]:
    plan = watershed.prepare_watershed(dataset.config)
    total = plan.grid.count(2)
    return [
        StageStatus(f"watershed: {stage}", total, total - len(watershed.pending(plan, watershed.Stage(stage.value))))
        for stage in (Stage.LABELS, Stage.EDGES)
    ]


def _voxels_row(dataset: Dataset) -> StageStatus:
    try:
        plan = populate.populate_plan(dataset.watershed_url, dataset.grid, dataset.config.ocdbt_config)
    except NotFoundError:
        return StageStatus("voxels", dataset.grid.count(min(4, dataset.grid.n_layers)), 0)
    return StageStatus(f"voxels (layer {plan.layer})", plan.n_tasks, plan.n_tasks - len(plan.missing))
