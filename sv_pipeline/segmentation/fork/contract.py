"""Publishes a fork for readers that do not know this software: its contract, and its address for neuroglancer."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from sv_pipeline.redaction import redacted_value
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.storage import kv, ocdbt

__all__ = ["neuroglancer_url", "publish", "published_folder", "reader_contract"]

READERS = ".readers/"
"""Folder below ``ocdbt/`` with a folder for each graph, which holds its published documents."""


def published_folder(watershed_url: str, graph_id: str) -> str:
    """Return the folder of a graph's published documents: ``contract.json``, and ``info`` for graphene sources."""
    return kv.join_url(ocdbt.ocdbt_folder(watershed_url), READERS + graph_id)


def publish(watershed_url: str, graph_id: str, documents: dict[str, dict[str, Any]]) -> None:
    """Write documents, given by the names of their files; existing ones are replaced."""
    content = {name: json.dumps(document, indent=1).encode() for name, document in documents.items()}
    kv.write_many(published_folder(watershed_url, graph_id), content)


def reader_contract(base: BaseInfo, graph_id: str, keys: dict[str, Any], generation: int) -> dict[str, Any]:
    """Return everything that a reader of a graph's voxels needs, for JSON: a spec and the bounds of each mip.

    Parameters
    ----------
    keys
        Key-value spec of the fork, which may be pinned to a version.
    generation
        The fork's latest generation.
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
    # The contract is published, so it must not hold credentials; a reader uses its own.
    return dict(redacted_value(contract))


def neuroglancer_url(base: BaseInfo, keys: dict[str, Any]) -> str | None:
    """Return neuroglancer's source URL for a fork, given the spec of its keys; None if neuroglancer cannot read it."""
    if not base.watershed_url.startswith("gs://") or base.form.manifest_kind == "numbered":
        return None
    if isinstance(keys["base"], str):
        return f"{keys['base']}|ocdbt:|neuroglancer-precomputed:"
    layers = keys["base"]["layers"]
    stack = quote(json.dumps({"layers": layers}, separators=(",", ":")), safe="")
    return f"kvstack:{stack}/|ocdbt:|neuroglancer-precomputed:"
