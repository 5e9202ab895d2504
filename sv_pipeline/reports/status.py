"""The progress of an ingest as a value: for each stage and layer the chunks, done and failed ones, and the speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.ingest import progress, watershed
from sv_pipeline.ingest.forecast import StageForecast
from sv_pipeline.ingest.pace import WorkersSeen, pace_of, workers_seen
from sv_pipeline.ingest.planning import kept_forecast
from sv_pipeline.ingest.progress import FailureKind, LayerStatus
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import layout
from sv_pipeline.segmentation.base.referring import method_cost
from sv_pipeline.wording import counted

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
    throughput_now: float | None = None
    """Chunks per second in the last minutes; None if the layer is complete, or nothing was done in them."""
    seconds_left: float | None = None
    """Time until the layer is complete, in seconds: at its throughput, or for a layer that is not begun by the forecast
    that was stored when the graph was set up."""
    work_seconds: float | None = None
    """Time of work of all workers on the done chunks, in seconds; None for other stages than layers."""
    wall_seconds: float | None = None
    """Time from the start of the first batch to the end of the last, in seconds; None while unknown."""
    rows: int | None = None
    """Rows that the layer's tasks have written: markers, nodes, and supervoxels in layer 2."""
    predicted_work_seconds: float | None = None
    """Time of work that was forecast for the whole layer."""
    predicted_wall_seconds: float | None = None
    failures: tuple[FailureKind, ...] = ()
    """The failed chunks by kind of failure."""

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
    workers: WorkersSeen = field(default_factory=WorkersSeen)
    """The workers that are building layers."""
    seconds_left: float | None = None
    """Time until all layers are complete, in seconds; None while unknown."""

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
        return {
            "graph_id": self.graph_id,
            "forked": self.forked,
            "complete": self.complete,
            "seconds_left": self.seconds_left,
            "workers": asdict(self.workers),
            "stages": rows,
        }


def graph_status(dataset: Dataset, *, exact: bool = True) -> GraphStatus:
    """Determine the status from the done-markers alone: a chunk without a marker is not done.

    Parameters
    ----------
    exact
        Whether to include chunks whose markers are not counted yet; see `ingest.progress.layer_status`.
    """
    try:
        grid = dataset.grid
    except InputError:
        return GraphStatus(dataset.graph_id, (), forked=False)
    mode = dataset.config.ingest.mode
    rows = [] if dataset.config.source is None else _watershed_rows(dataset, exact=exact)
    seen, left = WorkersSeen(), list[float | None]()
    if mode is not IngestMode.VOXELS:
        try:
            by_layer = progress.layer_status(dataset.graph, exact=exact)
            elsewhere = progress.built_elsewhere(dataset.graph)
        except NotFoundError:
            by_layer, elsewhere = {}, False
        forecast = {} if elsewhere else _forecast(dataset)
        for layer in range(2, grid.n_layers + 1):
            status = by_layer.get(layer)
            rows.append(
                StageStatus(f"layer {layer}", grid.count(layer), 0, built_elsewhere=elsewhere)
                if status is None or elsewhere
                else _layer_row(status, forecast.get(f"layer {layer}"))
            )
            left.append(rows[-1].seconds_left)
        if by_layer and not elsewhere:
            seen = _workers(dataset, by_layer, exact=exact)
    if mode is not IngestMode.GRAPH:
        rows.append(_voxels_row(dataset, exact=exact))
    return GraphStatus(
        dataset.graph_id,
        tuple(rows),
        forked=dataset.fork.exists(),
        fork_wanted=mode is not IngestMode.GRAPH,
        workers=seen,
        seconds_left=_sum(left),
    )


_looks: dict[tuple[str, str], tuple[float, WorkersSeen]] = {}
"""The workers of a graph when last looked for, and the time before which they are not looked for again."""


def _workers(dataset: Dataset, by_layer: dict[int, LayerStatus], *, exact: bool) -> WorkersSeen:
    """Look for the workers of unfinished layers; if not ``exact``, in at most a twentieth of the time."""
    unfinished = {layer: status for layer, status in by_layer.items() if not status.complete}
    layers = {layer for layer, status in unfinished.items() if status.done or status.failed} | {*list(unfinished)[:1]}
    place = dataset.home, dataset.graph_id
    due, seen = _looks.get(place, (0.0, WorkersSeen()))
    started = time.monotonic()
    if exact or started >= due:
        seen = workers_seen(dataset.graph, layers)
        ended = time.monotonic()
        _looks[place] = ended + 20 * (ended - started), seen
    return seen


def _forecast(dataset: Dataset) -> dict[str, StageForecast]:
    """The stored forecast of the graph by stage; empty if there is none, or it cannot be read any more."""
    found = kept_forecast(dataset)
    return {} if found is None else {stage.name: stage for stage in found.stages}


def _layer_row(status: LayerStatus, forecast: StageForecast | None) -> StageStatus:
    pace = pace_of(status)
    waiting = forecast is not None and not status.done
    wall = None
    if status.first_started is not None and status.last_finished is not None:
        wall = (status.last_finished - status.first_started) / 1000
    return StageStatus(
        f"layer {status.layer}",
        status.chunks,
        status.done,
        status.failed,
        status.nodes,
        status.throughput,
        status.error,
        throughput_now=pace.now,
        seconds_left=forecast.wall.value if forecast is not None and waiting else pace.seconds_left,
        work_seconds=status.seconds,
        wall_seconds=wall,
        rows=status.done + status.nodes + status.supervoxels,
        predicted_work_seconds=None if forecast is None else forecast.work.value,
        predicted_wall_seconds=None if forecast is None else forecast.wall.value,
        failures=status.failures,
    )


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def _watershed_rows(dataset: Dataset, *, exact: bool) -> list[StageStatus]:
    # Only the markers are read, not the source, which may be large, remote or deleted.
    grid, url, rows = dataset.grid, dataset.watershed_url, []
    for stage in watershed.WatershedPass:
        place = url + watershed.markers_folder(stage)
        done = _listed(place, lambda s=stage: int(watershed.done_mask(url, s, grid).sum()), exact=exact)  # type: ignore[misc]
        rows.append(StageStatus(f"watershed: {stage}", grid.count(2), done))
    return rows


_listings: dict[str, tuple[float, int]] = {}
"""Number of markers in a folder, and the time before which it is not counted again."""


def _listed(folder: str, count: Callable[[], int], *, exact: bool) -> int:
    """Count the markers in a folder; if not ``exact``, a watcher counts in at most a twentieth of the time."""
    due, found = _listings.get(folder, (0.0, 0))
    started = time.monotonic()
    if exact or started >= due:
        found = count()
        ended = time.monotonic()
        _listings[folder] = ended + 20 * (ended - started), found
    return found


def _voxels_row(dataset: Dataset, *, exact: bool) -> StageStatus:
    base = dataset.base
    with suppress(NotFoundError):
        if base.info().made_elsewhere:
            return StageStatus("voxels", 0, 0, built_elsewhere=True)
    meta = base.division()
    config = base.effective(dataset.config.ocdbt_config)
    layer = layout.populate_layer(config, dataset.grid) if meta is None else meta.layer
    tasks = (dataset.grid if meta is None else meta.grid).count(layer)
    if base.is_complete():
        done = tasks
    else:
        done = 0 if meta is None else _listed(base.folder, lambda: base.n_done_tasks(meta), exact=exact)
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
    chunks = f" ({counted(counts['referred'], 'storage chunk')}, {counts['copied']:,} copied)" if counts else ""
    one, stored = len(base.referred) == 1, base.n_mips - len(base.referred)
    mips = f"mip {base.referred[0]} is" if one else f"mips {', '.join(map(str, base.referred))} are"
    rest = f"; the other {'mip is' if stored == 1 else 'mips are'} stored" if stored else ""
    it = "it lies" if one else "they lie"
    return f"{mips} referred to where {it} in the watershed, which must not change{chunks}{rest}"
