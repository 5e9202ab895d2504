"""The plan of an ingest as a value: its forecast, what it costs, and what happened instead, if it was ingested."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from sv_pipeline.config import BackendType, DatasetConfig
from sv_pipeline.errors import NotFoundError
from sv_pipeline.ingest import progress
from sv_pipeline.ingest.estimates import Estimate
from sv_pipeline.ingest.forecast import Forecast
from sv_pipeline.ingest.planning import kept_forecast
from sv_pipeline.ingest.prices import CostLine, bigtable_nodes, costs_of
from sv_pipeline.registry import Dataset

__all__ = ["Comparison", "PlanReport", "compare", "comparisons_of", "plan_report"]


@dataclass(frozen=True)
class Comparison:
    """A prediction beside what happened."""

    name: str
    predicted: Estimate
    actual: float

    @property
    def covered(self) -> bool:
        """Whether the interval of the prediction contains the actual number."""
        return self.predicted.covers(self.actual)


@dataclass(frozen=True)
class PlanReport:
    """The plan of an ingest."""

    forecast: Forecast
    costs: tuple[CostLine, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    """Predictions beside what happened; empty before an ingest."""
    in_bigtable: bool = True
    """Whether the graph's table is in a Bigtable, whose nodes have to be counted."""

    @property
    def bigtable_nodes(self) -> Estimate | None:
        """The number of nodes that a Bigtable needs; None if the graph has no table there."""
        builds = self.forecast.workload.builds_graph
        return bigtable_nodes(self.forecast) if builds and self.in_bigtable else None

    def to_dict(self) -> dict[str, Any]:
        """Return values that can be written as JSON."""
        found, work = self.forecast, self.forecast.workload
        sample = None if found.sample is None else asdict(found.sample)
        return {
            "graph_id": found.graph_id,
            "size": list(work.size),
            "chunk_size": list(work.chunk_size),
            "chunks": {str(layer): count for layer, count in work.layers.items()},
            "batches": work.batches,
            "steps": work.steps,
            "workers": found.workers,
            "sample": sample,
            "stages": [asdict(stage) for stage in found.stages],
            "work_seconds": found.work.to_dict(),
            "wall_seconds": found.wall.to_dict(),
            "quantities": {name: asdict(quantity) for name, quantity in found.quantities.items()},
            "worker_memory_bytes": found.worker_memory.to_dict(),
            "bigtable_nodes": None if self.bigtable_nodes is None else self.bigtable_nodes.to_dict(),
            "costs": [asdict(line) for line in self.costs],
            "notes": list(found.notes),
            "actual": [{**asdict(c), "covered": c.covered} for c in self.comparisons],
        }


def plan_report(
    found: Forecast, config: DatasetConfig, prices: Mapping[str, float] | None = None, dataset: Dataset | None = None
) -> PlanReport:
    """Return the report of a forecast, with its costs, and with what happened if its graph is given."""
    compared = () if dataset is None else compare(dataset, found)
    in_bigtable = config.backend_client.type is BackendType.BIGTABLE
    return PlanReport(found, costs_of(found, prices or {}), compared, in_bigtable)


def comparisons_of(dataset: Dataset) -> tuple[Comparison, ...]:
    """Compare the forecast that was stored for a graph with what happened; empty if none was stored."""
    found = kept_forecast(dataset)
    return () if found is None else compare(dataset, found)


def compare(dataset: Dataset, found: Forecast) -> tuple[Comparison, ...]:
    """Compare a forecast of a graph with what its complete layers took. The numbers of chunks are known exactly."""
    try:
        layers = progress.layer_status(dataset.graph)
    except NotFoundError:
        return ()
    done = {layer: status for layer, status in layers.items() if status.complete}
    stages = {stage.name: stage for stage in found.stages}
    result: list[Comparison] = []
    if 2 in done:
        result.append(Comparison("supervoxels", found.quantity("supervoxels"), done[2].supervoxels))
        result.append(Comparison("edges", found.quantity("edges"), done[2].edges))
    if len(done) == len(layers):
        result.append(Comparison("nodes", found.quantity("nodes"), sum(status.nodes for status in done.values())))
        size = _bytes_of_table(dataset)
        if size is not None:
            result.append(Comparison("table bytes", found.quantity("table bytes"), size))
    for layer, status in done.items():
        if (stage := stages.get(f"layer {layer}")) is not None:
            result.append(Comparison(f"{stage.name}: chunks", Estimate.exact(stage.chunks), status.done))
            result.append(Comparison(f"{stage.name}: seconds of work", stage.work, status.seconds))
            if status.first_started is not None and status.last_finished is not None:
                wall = (status.last_finished - status.first_started) / 1000
                result.append(Comparison(f"{stage.name}: seconds until complete", stage.wall, wall))
    return tuple(result)


def _bytes_of_table(dataset: Dataset) -> int | None:
    """Size of the file of a table; None for a backend that does not tell."""
    file = dataset.table.file
    if file is None:
        return None
    with suppress(OSError):
        return sum(path.stat().st_size for path in file.parent.glob(file.name + "*"))
    return None
