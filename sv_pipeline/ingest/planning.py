"""Plans of ingests: the forecast of a configuration or of a registered graph, and where a forecast is kept.

A forecast needs only the info file of the volume; nothing is registered, and nothing is written. The forecast of a
graph that is ingested is kept in ``<home>/forecasts/<graph id>.json``, so that it can be compared with what happened.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from sv_pipeline.config import DatasetConfig
from sv_pipeline.errors import DamagedError, NotFoundError
from sv_pipeline.ingest import watershed
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.forecast import Forecast, Quantity, SampleNote, default_content, forecast
from sv_pipeline.ingest.workload import Workload, workload_of
from sv_pipeline.memory import memory_budget
from sv_pipeline.progress import Progress
from sv_pipeline.registry import Dataset, absolute
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import read_info
from sv_pipeline.storage.stored_json import parse_stored

__all__ = [
    "default_forecast",
    "expected_seconds",
    "forget_forecast",
    "keep_forecast",
    "keep_if_absent",
    "kept_forecast",
    "plan_ingest",
    "workload_of_config",
]

FOLDER = "forecasts/"

logger = logging.getLogger(__name__)


def workload_of_config(config: DatasetConfig) -> Workload:
    """Return the size of an ingest of a configuration, which need not be registered. Nothing is written.

    The watershed volume is read if it exists; otherwise the source tells its size.

    Raises
    ------
    InputError
        If there is neither a volume nor a source, or it cannot be used.
    ConfigError
        If the volume cannot be divided as the configuration says.
    """
    config = absolute(config)
    if config.source is not None:
        return workload_of(config, watershed.planned_volume(config))
    return workload_of(config, read_info(config.data_source.watershed))


def plan_ingest(
    config: DatasetConfig,
    home: str,
    *,
    workers: int | None = None,
    sample: int = 0,
    supervoxels: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Forecast:
    """Forecast an ingest from nothing.

    Parameters
    ----------
    config
        Configuration of the graph; it need not be registered.
    home
        Home folder; used only by a sample.
    workers
        Number of worker processes. Default: that of the configuration.
    sample
        Number of chunks to ingest in a scratch place; 0 takes the default figures.
    supervoxels
        Number of supervoxels of the volume, if it is known and no sample is taken.

    Raises
    ------
    ConfigError, InputError
        If the configuration, its volume or the size of the sample cannot be used.
    """
    config = absolute(config)
    workload, notes = _without_complete_base(config, workload_of_config(config))
    content = default_content(workload, supervoxels=supervoxels)
    note: SampleNote | None = None
    if sample:
        # Imported here, since an ingest plans its work, but takes no sample.
        from sv_pipeline.ingest.sampling import take_sample

        taken = take_sample(config, home, workload, sample, seed=seed, progress=progress)
        content, note, notes = {**content, **taken.content}, taken.note, notes + taken.notes
    return _forecast(config, workload, content, workers or config.ingest.workers, note, notes)


def _without_complete_base(config: DatasetConfig, workload: Workload) -> tuple[Workload, tuple[str, ...]]:
    """Leave out the base if the watershed has one that is complete, since all graphs share it; say so in a note."""
    if not workload.mips:
        return workload, ()
    base = Base(config.data_source.watershed)
    try:
        complete = base.is_complete() or base.info().made_elsewhere
    except NotFoundError:
        complete = False
    if not complete:
        return workload, ()
    stages = tuple(work for work in workload.stages if work.stage is not Stage.VOXELS)
    note = "The base of the watershed is complete already, and this graph shares it, so no voxels are copied."
    return replace(workload, stages=stages, mips=()), (note,)


def _forecast(
    config: DatasetConfig,
    workload: Workload,
    content: dict[str, Quantity],
    workers: int,
    sample: SampleNote | None = None,
    notes: tuple[str, ...] = (),
) -> Forecast:
    budget = memory_budget(config.ingest.worker_memory_mb)
    return forecast(
        config.graph_id, workload, content, workers=workers, worker_memory=budget, sample=sample, notes=notes
    )


# -- keeping ----------------------------------------------------------------------------------------------------------


def keep_forecast(dataset_home: str, found: Forecast) -> None:
    """Store the forecast of a graph, in place of an earlier one."""
    data = json.dumps(asdict(found), indent=1).encode()
    kv.write_bytes(kv.as_url(dataset_home) + FOLDER, f"{found.graph_id}.json", data)


def forget_forecast(dataset: Dataset) -> None:
    """Remove the forecast that is stored for a graph, if there is one."""
    kv.delete_key(kv.as_url(dataset.home) + FOLDER, f"{dataset.graph_id}.json")


def keep_if_absent(dataset: Dataset) -> None:
    """Store the forecast of a registered graph whose watershed volume exists, unless one is stored."""
    if kv.read_bytes(kv.as_url(dataset.home) + FOLDER, f"{dataset.graph_id}.json") is None:
        keep_forecast(dataset.home, default_forecast(dataset))


def default_forecast(dataset: Dataset) -> Forecast:
    """Return the forecast of a registered graph by the default figures; its source may be gone already."""
    config = dataset.config
    workload = workload_of(config, dataset.volume)
    return _forecast(config, workload, default_content(workload), config.ingest.workers)


def expected_seconds(dataset: Dataset, batches: Sequence[Batch]) -> float:
    """Return the time of work of some batches by the default figures, as if none of their chunks were done."""
    expected = default_forecast(dataset)
    # Voxels are populated with a layer that the base determines, which the forecast need not know.
    stages = {
        (work.stage, None if work.stage is Stage.VOXELS else work.layer): stage
        for work, stage in zip(expected.workload.stages, expected.stages, strict=True)
    }
    total = 0.0
    for batch in batches:
        stage = stages.get((batch.stage, None if batch.stage is Stage.VOXELS else batch.layer))
        if stage is None:
            return math.inf  # the configuration's mode has no such work, though this run does
        total += stage.work.value * (batch.stop - batch.first) / stage.chunks
    return total


def kept_forecast(dataset: Dataset) -> Forecast | None:
    """Return the forecast that was stored for a graph; None if there is none, or it cannot be read any more."""
    url, name = kv.as_url(dataset.home) + FOLDER, f"{dataset.graph_id}.json"
    raw = kv.read_bytes(url, name)
    if raw is None:
        return None
    try:
        return parse_stored(raw, Forecast, url + name, remedy="Remove that file.")
    except DamagedError as error:
        # A forecast of another version is of no use, and its graph can do without.
        logger.warning("%s", error)
        return None
