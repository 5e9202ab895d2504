"""The published description of one graph, for readers and operators, as a value: places, mips and TensorStore specs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sv_pipeline.errors import NotFoundError
from sv_pipeline.redaction import redacted, redacted_value
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.viewer_links import neuroglancer_link, viewer_link

__all__ = ["GraphInfo", "MipInfo", "graph_info"]


@dataclass(frozen=True)
class MipInfo:
    """One mip of the published segmentation."""

    mip: int
    resolution_nm: tuple[float, float, float]
    size: tuple[int, int, int]
    voxel_offset: tuple[int, int, int]
    pending: bool
    """Whether this mip does not show all edits of mip 0 yet; the fork's ledger lists the boxes."""
    latest: dict[str, Any]
    """TensorStore spec that always shows the latest edits."""
    pinned: dict[str, Any]
    """TensorStore spec that shows the current generation for ever."""


@dataclass(frozen=True)
class GraphInfo:
    """The published description of a graph."""

    graph_id: str
    watershed: str
    edges: str
    components: str
    table: dict[str, Any]
    chunk_size: tuple[int, int, int]
    n_layers: int
    generation: int
    pending: dict[str, Any]
    """The lag of the coarser mips behind edits of mip 0."""
    mips: tuple[MipInfo, ...]
    viewer: str
    """What opens the graph in our viewer: a command, or an address; see `viewer_links`."""
    neuroglancer: str | None
    """Address at which neuroglancer alone shows the voxels before any edit; None unless they are in a bucket."""

    def to_dict(self) -> dict[str, Any]:
        """Return values that can be written as JSON, without any secrets that the places hold."""
        return dict(redacted_value(asdict(self)))


def graph_info(dataset: Dataset) -> GraphInfo:
    """Return the published description of a graph.

    Raises
    ------
    NotFoundError
        If the graph has no fork yet.
    """
    url, fork = dataset.watershed_url, dataset.fork
    if not fork.exists():
        raise NotFoundError(
            f"graph {fork.graph_id!r} has no fork under {url}, so there is nothing for readers to open yet.",
            remedy="Finish the ingest ('sv-pipeline ingest', or materialize the asset fork).",
        )
    generation, behind = fork.generation(), fork.lag()
    backend = dataset.config.backend_client
    return GraphInfo(
        graph_id=fork.graph_id,
        watershed=redacted(url),
        edges=redacted(dataset.config.edges_url),
        components=redacted(dataset.config.components_url),
        table={
            "name": dataset.config.table_name,
            "type": backend.type.value,
            **{k: v for k, v in backend.config.model_dump().items() if k in {"project", "instance", "path"} and v},
        },
        chunk_size=dataset.config.graph_config.chunk_size,
        n_layers=dataset.grid.n_layers,
        generation=generation,
        pending=asdict(behind),
        mips=tuple(
            MipInfo(
                mip=mip,
                resolution_nm=scale.resolution,
                size=scale.size,
                voxel_offset=scale.voxel_offset,
                pending=mip > 0 and behind.entries > 0,
                latest=redacted_value(fork.spec(mip)),
                pinned=redacted_value(fork.spec(mip, version=generation)),
            )
            for mip, scale in enumerate(fork.base_info().volume.scales)
        ),
        viewer=viewer_link(dataset),
        neuroglancer=neuroglancer_link(dataset),
    )
