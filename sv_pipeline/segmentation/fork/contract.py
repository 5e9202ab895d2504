"""Owns what we publish about a fork for readers that know nothing of us: its contract, and its address."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from sv_pipeline.redaction import redacted_value
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.storage import kv, ocdbt

__all__ = ["neuroglancer_url", "publish", "published_folder", "reader_contract"]

READERS = ".readers/"
"""Below ``ocdbt/``: a folder for each graph, with the documents that are published of it."""


def published_folder(watershed_url: str, graph_id: str) -> str:
    """Folder of the published documents of a graph: ``contract.json``, and ``info`` for graphene data sources."""
    return kv.join_url(ocdbt.ocdbt_folder(watershed_url), READERS + graph_id)


def publish(watershed_url: str, graph_id: str, documents: dict[str, dict[str, Any]]) -> None:
    """Write documents, by the names of their files, in place of those that are there."""
    content = {name: json.dumps(document, indent=1).encode() for name, document in documents.items()}
    kv.write_many(published_folder(watershed_url, graph_id), content)


def reader_contract(base: BaseInfo, graph_id: str, keys: dict[str, Any], generation: int) -> dict[str, Any]:
    """Everything that a reader of a graph's voxels needs, as JSON: a spec per mip, and where the mips lie.

    Parameters
    ----------
    keys
        Key-value spec of the fork, which may be pinned to a version.
    generation
        The fork's latest commit.
    """
    contract = {
        "graph_id": graph_id,
        "watershed": base.watershed_url,
        "data_type": base.volume.data_type,
        "generation": generation,
        "version": keys.get("version"),
        "mips": [
            {
                "mip": mip,
                "resolution": list(scale.resolution),
                "voxel_offset": list(scale.voxel_offset),
                "size": list(scale.size),
                "storage_chunk": list(scale.chunk_size),
                "spec": ocdbt.array_spec(keys, mip),
            }
            for mip, scale in enumerate(base.volume.scales)
        ],
        "neuroglancer": neuroglancer_url(base, keys),
    }
    # It is published: a reader brings credentials of its own.
    return dict(redacted_value(contract))


def neuroglancer_url(base: BaseInfo, keys: dict[str, Any]) -> str | None:
    """Source URL of a fork, of the spec of its keys, for neuroglancer; None where neuroglancer could not read it."""
    if not base.watershed_url.startswith("gs://") or base.form.manifest_kind == "numbered":
        return None
    if isinstance(keys["base"], str):
        return f"{keys['base']}|ocdbt:|neuroglancer-precomputed:"
    layers = keys["base"]["layers"]
    stack = quote(json.dumps({"layers": layers}, separators=(",", ":")), safe="")
    return f"kvstack:{stack}/|ocdbt:|neuroglancer-precomputed:"
