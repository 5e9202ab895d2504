"""Owns what we publish about a fork for readers that know nothing of us: its contract, and its address."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from sv_pipeline.redaction import redacted_value
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.storage import ocdbt

__all__ = ["neuroglancer_url", "reader_contract"]


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
        "neuroglancer": neuroglancer_url(base, graph_id),
    }
    # It is published: a reader brings credentials of its own.
    return dict(redacted_value(contract))


def neuroglancer_url(base: BaseInfo, graph_id: str) -> str | None:
    """Source URL of a fork for neuroglancer; None where neuroglancer could not read it."""
    if not base.watershed_url.startswith("gs://") or base.form.manifest_kind == "numbered":
        return None
    layers = base.fork_spec(graph_id)["base"]["layers"]
    stack = quote(json.dumps({"layers": layers}, separators=(",", ":")), safe="")
    return f"kvstack:{stack}/|ocdbt:|neuroglancer-precomputed:"
