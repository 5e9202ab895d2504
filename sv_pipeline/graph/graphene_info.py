"""The ``info`` document of a graph for viewers: what a graphene data source expects, as PyChunkedGraph serves it."""

from __future__ import annotations

from typing import Any

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import LAYER_BITS
from sv_pipeline.redaction import redacted_value
from sv_pipeline.storage.precomputed import read_info_file

__all__ = ["graphene_info"]

BOUNDING_BOX = [2048, 2048, 512]
"""Voxels. What PyChunkedGraph serves for every graph."""
API_VERSIONS = [0, 1]
"""Versions of PyChunkedGraph's web interface that a server of this document offers; cloud-volume asks for them."""


def graphene_info(graph: ChunkedGraph) -> dict[str, Any]:
    """The document of a graph: the watershed's own ``info``, and what a viewer must know of the graph.

    ``ocdbt_kvstore_spec`` in the section ``graph`` is the TensorStore spec of the key space with the graph's present
    voxels: a volume lies at its root, with an ``info`` of its own. ``scales`` and ``data_dir`` are those of the
    watershed, which shows the voxels as they were before any edit.

    Raises
    ------
    NotFoundError
        If the graph has no fork.
    """
    layout, meta = graph.layout, graph.meta
    document = {
        **read_info_file(graph.watershed_url),
        "chunks_start_at_voxel_offset": True,
        "data_dir": graph.watershed_url.removesuffix("/"),
        "app": {"supported_api_versions": API_VERSIONS},
        "graph": {
            "chunk_size": list(meta.chunk_size),
            "bounding_box": BOUNDING_BOX,
            "n_bits_for_layer_id": LAYER_BITS,
            "cv_mip": int(meta.data_source.CV_MIP or 0),
            "n_layers": graph.n_layers,
            "spatial_bit_masks": {
                str(layer): layout.bits_per_dimension(layer) for layer in range(1, graph.n_layers + 1)
            },
            "ocdbt_seg": True,
            "ocdbt_kvstore_spec": graph.fork.spec(),
        },
    }
    mesh = meta.custom_data.get("mesh") or {}
    if mesh.get("dir"):
        document["mesh"] = str(mesh["dir"])
    # It is published: a reader brings credentials of its own.
    return dict(redacted_value(document))
