"""The forecast of an ingest: rows, bytes, memory, time and money, from a workload and from costs. Pure arithmetic.

What the info file determines (chunks, batches, steps, rows with markers) is exact. The content of the volume and the
time of work come from a sample of its chunks, or from the figures of `default_costs`. Each quantity says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sv_pipeline.ingest.batches import Stage
from sv_pipeline.ingest.default_costs import DEFAULT_COSTS, Costs
from sv_pipeline.ingest.estimates import Estimate
from sv_pipeline.ingest.workload import LayerWork, Workload

__all__ = [
    "DEFAULT",
    "EXACT",
    "GIVEN",
    "SAMPLE",
    "Forecast",
    "Origin",
    "Quantity",
    "SampleNote",
    "StageForecast",
    "default_content",
    "forecast",
]

Origin = str
"""``exact``, ``sample``, ``given`` or ``default``: where a number comes from."""
EXACT, SAMPLE, GIVEN, DEFAULT = "exact", "sample", "given", "default"


@dataclass(frozen=True)
class Quantity:
    """A number of the forecast and where it comes from."""

    estimate: Estimate
    origin: Origin


@dataclass(frozen=True)
class SampleNote:
    """Which sample a forecast is made from."""

    chunks: int
    of: int
    seed: int
    seconds: float
    """Time that the sample took, in seconds."""
    time: str
    """When it was taken, in ISO format."""


@dataclass(frozen=True)
class StageForecast:
    """The forecast of one stage."""

    name: str
    chunks: int
    batches: int
    work: Estimate
    """Time of work of all workers together, in seconds."""
    wall: Estimate
    """Time until the stage is complete, in seconds, for the forecast's number of workers."""
    origin: Origin
    """Where the time of work comes from."""
    memory: Estimate
    """Largest memory of one worker process, in bytes."""
    nodes: Estimate | None = None
    """Nodes that the tasks of a layer make; None for other stages."""


@dataclass(frozen=True)
class Forecast:
    """What an ingest will need."""

    graph_id: str
    workers: int
    workload: Workload
    stages: tuple[StageForecast, ...]
    quantities: dict[str, Quantity]
    """Rows, bytes and files by name."""
    sample: SampleNote | None = None
    notes: tuple[str, ...] = field(default=())
    """Sentences that a reader of the numbers has to know."""

    @property
    def work(self) -> Estimate:
        """Time of work of all workers together, in seconds."""
        return _total([stage.work for stage in self.stages])

    @property
    def wall(self) -> Estimate:
        """Time until everything is built, in seconds."""
        return _total([stage.wall for stage in self.stages])

    @property
    def worker_memory(self) -> Estimate:
        """Largest memory of one worker process in any stage, in bytes."""
        return max((stage.memory for stage in self.stages), key=lambda m: m.value, default=Estimate.exact(0))

    def quantity(self, name: str) -> Estimate:
        """Return a quantity by its name; zero if the ingest makes nothing of it."""
        found = self.quantities.get(name)
        return Estimate.exact(0) if found is None else found.estimate


def default_content(
    workload: Workload, costs: Costs = DEFAULT_COSTS, supervoxels: float | None = None
) -> dict[str, Quantity]:
    """Return the content and the costs of a volume of which nothing was measured, by the names of `sampling`.

    Parameters
    ----------
    supervoxels
        Number of supervoxels in the volume, if it is known.
    """
    voxels, keys = float(workload.voxels), float(sum(mip.keys for mip in workload.mips if mip.referred))
    chunks, known = float(workload.chunks), supervoxels is not None
    count = Estimate.exact(float(supervoxels or 0)) if known else costs.supervoxels_per_voxel * voxels
    copied = float(sum(mip.voxels for mip in workload.mips if not mip.referred))
    # If mip 0 is referred to, it is still read once to make the coarser mips.
    read = voxels if any(mip.referred for mip in workload.mips) else 0.0
    content = {
        "edges": count * costs.edges_per_supervoxel,
        "layer 2 nodes": count * costs.nodes_per_supervoxel,
        "layer 2 bytes": count * costs.bytes_per_supervoxel,
        "seconds: labels": costs.label_seconds_per_voxel * voxels + costs.label_seconds_per_chunk * chunks,
        "seconds: edges": costs.edge_seconds_per_voxel * voxels + costs.edge_seconds_per_chunk * chunks,
        "seconds: layer 2": costs.read_seconds_per_voxel * voxels
        + costs.layer2_seconds_per_chunk * chunks
        + costs.layer2_seconds_per_supervoxel * count,
        "seconds: voxels": costs.copy_seconds_per_voxel * (copied + read) + costs.refer_seconds_per_key * keys,
        "file bytes": count * costs.file_bytes_per_supervoxel,
        "watershed bytes": costs.volume_bytes_per_voxel * voxels,
        "base bytes": costs.volume_bytes_per_voxel * copied + costs.bytes_per_reference * keys,
    }
    return {
        "supervoxels": Quantity(count, GIVEN if known else DEFAULT),
        **{name: Quantity(estimate, DEFAULT) for name, estimate in content.items()},
    }


def forecast(
    graph_id: str,
    workload: Workload,
    content: Mapping[str, Quantity],
    *,
    workers: int,
    worker_memory: int,
    costs: Costs = DEFAULT_COSTS,
    sample: SampleNote | None = None,
    notes: tuple[str, ...] = (),
) -> Forecast:
    """Forecast an ingest from nothing.

    Parameters
    ----------
    content
        Content of the volume and time of the stages up to layer 2, by name: `default_content`, or what a sample found.
    workers
        Number of worker processes.
    worker_memory
        Memory in bytes that the work of one process may take.
    costs
        Costs of what no sample measures: the layers above 2, and the merge of the base.
    """
    nodes = _nodes(workload, content["layer 2 nodes"].estimate, costs)
    costs, notes = _as_fast_as_measured(workload, content, costs), (*notes, *_notes(workload, content, workers))
    supervoxels = content["supervoxels"].estimate
    stages = tuple(
        replace(
            _stage(work, workload, content, nodes, costs, workers),
            memory=_memory(work, workload, supervoxels, nodes, costs, worker_memory),
        )
        for work in workload.stages
    )
    return Forecast(
        graph_id=graph_id,
        workers=workers,
        workload=workload,
        stages=stages,
        quantities=_quantities(workload, content, nodes, costs),
        sample=sample,
        notes=notes,
    )


def _as_fast_as_measured(workload: Workload, content: Mapping[str, Quantity], costs: Costs) -> Costs:
    """Scale the costs of upper layers, which no sample measures, by how much slower than the figures layer 2 was."""
    found = content["seconds: layer 2"]
    if found.origin != SAMPLE:
        return costs
    expected = default_content(workload, costs, content["supervoxels"].estimate.value)["seconds: layer 2"]
    ratio = found.estimate.value / expected.estimate.value
    return replace(
        costs,
        upper_seconds_per_chunk=costs.upper_seconds_per_chunk * ratio,
        upper_seconds_per_node=costs.upper_seconds_per_node * ratio,
    )


def _notes(workload: Workload, content: Mapping[str, Quantity], workers: int) -> tuple[str, ...]:
    """Sentences about what the numbers do not show."""
    notes = []
    if content["supervoxels"].origin == DEFAULT:
        notes.append(
            "The number of supervoxels was not measured: the forecast takes the density of one volume of 10 nm voxels. "
            "Take a sample, or give the number."
        )
    if workload.builds_graph and len(workload.layers) > 1:
        notes.append("Nodes and times above layer 2 follow from layer 2 by ratios that were measured elsewhere.")
    most = max((work.batches for work in workload.stages), default=workers)
    if workers > most:
        notes.append(f"More workers than {most} do not help: no stage has more batches.")
    return tuple(notes)


def _nodes(workload: Workload, layer2: Estimate, costs: Costs) -> dict[int, Estimate]:
    """Nodes that the tasks of each layer make. Above layer 2 only objects that cross a chunk's border get nodes.

    The border of a chunk grows by 4 from layer to layer and the number of chunks falls by 8, so about half as many
    nodes are made in each layer as in the one below.
    """
    nodes = {2: layer2}
    for layer in workload.layers:
        if layer > 2:
            nodes[layer] = nodes[layer - 1] * (costs.first_node_ratio if layer == 3 else costs.node_ratio)
    return nodes


def _stage(
    work: LayerWork,
    workload: Workload,
    content: Mapping[str, Quantity],
    nodes: Mapping[int, Estimate],
    costs: Costs,
    workers: int,
) -> StageForecast:
    after = Estimate.exact(0)
    if work.stage is Stage.GRAPH and work.layer > 2:
        seconds = nodes[work.layer - 1] * costs.upper_seconds_per_node + costs.upper_seconds_per_chunk * work.chunks
        origin = DEFAULT
    else:
        found = content[f"seconds: {work.name}"]
        seconds, origin = found.estimate, found.origin
    if work.stage is Stage.VOXELS:
        after = costs.merge_seconds_per_key * workload.keys
    # Batches are about equal: with fewer batches than workers, some workers have nothing to do.
    rounds = math.ceil(work.batches / workers) / work.batches
    return StageForecast(
        name=work.name,
        chunks=work.chunks,
        batches=work.batches,
        work=seconds + after,
        wall=seconds * rounds + after,
        origin=origin,
        memory=Estimate.exact(0),
        nodes=nodes[work.layer] if work.stage is Stage.GRAPH else None,
    )


def _quantities(
    workload: Workload, content: Mapping[str, Quantity], nodes: Mapping[int, Estimate], costs: Costs
) -> dict[str, Quantity]:
    result: dict[str, Quantity] = {}
    if workload.builds_graph:
        upper = _total([count for layer, count in nodes.items() if layer > 2])
        ingest_rows = Estimate.exact(workload.ingest_rows)
        supervoxels = content["supervoxels"]
        all_nodes = nodes[2] + upper
        result |= {
            "supervoxels": supervoxels,
            "edges": content["edges"],
            "nodes": Quantity(all_nodes, content["layer 2 nodes"].origin),
            "ingest rows": Quantity(ingest_rows, EXACT),
            "table rows": Quantity(supervoxels.estimate + all_nodes + ingest_rows, supervoxels.origin),
            "table bytes": Quantity(
                content["layer 2 bytes"].estimate
                + upper * costs.bytes_per_node
                + ingest_rows * costs.bytes_per_ingest_row,
                content["layer 2 bytes"].origin,
            ),
        }
    if workload.makes_watershed:
        result |= {
            "watershed bytes": content["watershed bytes"],
            "edge file bytes": content["file bytes"],
            "files": Quantity(Estimate.exact(workload.files), EXACT),
        }
    if workload.mips:
        result["base bytes"] = content["base bytes"]
        result["base keys"] = Quantity(Estimate(workload.keys, 0, workload.keys), EXACT)
    return result


def _memory(
    work: LayerWork,
    workload: Workload,
    supervoxels: Estimate,
    nodes: Mapping[int, Estimate],
    costs: Costs,
    budget: int,
) -> Estimate:
    """Memory of a worker: the process, its group of chunks within the budget, and what one chunk needs at least."""
    per_batch = float(min(workload.chunks_per_batch, work.chunks))
    if work.stage in (Stage.LABELS, Stage.EDGES):
        need = costs.label_memory_per_voxel * float(workload.chunk_voxels)
    elif work.stage is Stage.VOXELS:
        need = _at_most(costs.copy_memory_per_voxel * float(workload.task_voxels), budget, Estimate.exact(0))
    elif work.layer == 2:
        one = supervoxels * (1 / workload.chunks) * costs.memory_per_supervoxel
        need = _at_most(one * per_batch, budget, one) + costs.read_memory_per_voxel * float(workload.chunk_voxels)
    else:
        one = nodes[work.layer - 1] * (1 / work.chunks) * costs.memory_per_node
        need = _at_most(one * per_batch, budget, one)
    return costs.process_memory + need


def _at_most(need: Estimate, limit: int, least: Estimate) -> Estimate:
    """Limit a need by the budget of a worker; one chunk is always worked on, however much it needs."""

    def bounded(value: float, lowest: float) -> float:
        return max(min(value, float(limit)), lowest)

    return Estimate(bounded(need.value, least.value), bounded(need.low, least.low), bounded(need.high, least.high))


def _total(estimates: list[Estimate]) -> Estimate:
    return sum(estimates, Estimate.exact(0))
