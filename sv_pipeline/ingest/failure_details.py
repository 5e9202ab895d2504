"""What the dump of a failed batch, or of the failed end of a stage, tells about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.config import DatasetConfig
from sv_pipeline.grid import Box
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.memory import memory_budget
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base.failure_details import count_keys, source_spec

__all__ = ["batch_details", "stage_details"]


def batch_details(dataset: Dataset, batch: Batch) -> dict[str, Any]:
    """Describe a batch: the graph, its chunks, the keys and bytes of their voxels, and what it reads and writes."""
    coordinates = batch.coordinates(dataset.grid)
    return {
        **stage_details(dataset, batch.stage, batch.layer),
        "batch": batch.key,
        "chunks": {"count": len(coordinates), "first": coordinates[0].tolist(), "last": coordinates[-1].tolist()},
        "mips": _mips(dataset, batch.layer, coordinates),
    }


def stage_details(dataset: Dataset, stage: Stage, layer: int) -> dict[str, Any]:
    """Describe a stage of a layer: the graph, and the specs of what it reads and writes."""
    config = dataset.config
    source, target = _places(config, dataset.watershed_url, stage, layer)
    return {
        "graph": dataset.graph_id,
        "home": dataset.home,
        "stage": stage.value,
        "layer": layer,
        "memory": memory_budget(config.ingest.worker_memory_mb),
        "source": source,
        "target": target,
    }


def _places(config: DatasetConfig, watershed: str, stage: Stage, layer: int) -> tuple[Any, Any]:
    table = config.backend_client.model_dump(mode="json")
    files = {"edges": config.edges_url, "components": config.components_url}
    volume = source_spec(watershed, 0)
    match stage:
        case Stage.LABELS:
            return (config.source.model_dump(mode="json") if config.source else None), volume
        case Stage.EDGES:
            return volume, files
        case Stage.GRAPH:
            return ({"volume": volume, **files} if layer == 2 else table), table
        case Stage.VOXELS:
            return volume, "the base; the details of the task have its spec"


def _mips(dataset: Dataset, layer: int, coordinates: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Numbers of the keys and bytes of the voxels below the chunks, at each mip of the watershed."""
    volume = dataset.volume
    boxes = [dataset.grid.box(layer, coordinate) for coordinate in coordinates]
    found = []
    for mip, scale in enumerate(volume.scales):
        factor, offset = np.asarray(volume.factors(mip)), volume.scales[0].voxel_offset
        here = [
            Box.of(np.subtract(box.start, offset) // factor, -(-np.subtract(box.stop, offset) // factor))
            .shifted(scale.voxel_offset)
            .clip(scale.bounds)
            for box in boxes
        ]
        found.append(
            {
                "mip": mip,
                "key": scale.key,
                "n_keys": sum(count_keys(box, scale) for box in here),
                "raw_bytes": np.dtype(volume.data_type).itemsize * sum(box.volume for box in here),
            }
        )
    return found
