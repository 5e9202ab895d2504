"""Owns how a fork is read: handles for ourselves, and the specs that we publish for everybody else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import tensorstore as ts

from sv_pipeline.errors import ConfigError, DamagedError, NotFoundError
from sv_pipeline.redaction import redacted_value
from sv_pipeline.segmentation.base.base import BaseInfo, read_base
from sv_pipeline.segmentation.fork.fork import require_fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.context import (
    is_of_another_database,
    process_context,
    remembers_another,
    reset_context,
)
from sv_pipeline.storage.file_guard import heal
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.retry import retry_transport

__all__ = [
    "current_generation",
    "is_current",
    "neuroglancer_url",
    "open_fork",
    "open_fork_store",
    "reader_contract",
    "reader_spec",
]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def reader_spec(
    watershed_url: str | Path, graph_id: str, mip: int = 0, *, version: ocdbt.Version | None = None
) -> dict[str, Any]:
    """The published spec: JSON that any TensorStore opens as it is.

    Parameters
    ----------
    mip
        0 = finest.
    version
        Generation, or time ``YYYY-MM-DDTHH:MM:SS[.frac]Z`` (the latest generation not after it); default: the latest
        whenever it is read. A pinned spec is read-only.

    Raises
    ------
    NotFoundError
        If there is no such fork or mip.
    ConfigError
        If the version is written wrongly.
    """
    base = _readable(watershed_url, graph_id, mip, version)
    return ocdbt.array_spec(_fork_spec(base, graph_id, version), mip)


def open_fork(
    watershed_url: str | Path,
    graph_id: str,
    mip: int = 0,
    *,
    version: ocdbt.Version | None = None,
    context: ts.Context | None = None,
) -> ts.TensorStore:
    """Open one mip of a fork as a 3-d store (x, y, z) in absolute coordinates of that mip.

    Parameters
    ----------
    context
        Other than that of this process; one without a cache for voxels that are read once.

    Raises
    ------
    NotFoundError
        If there is no such fork, mip or version.
    """
    base = _readable(watershed_url, graph_id, mip, version)
    spec = ocdbt.array_spec(_fork_spec(base, graph_id, version), mip)
    heal(ocdbt.fork_folder(base.watershed_url, graph_id))

    def open_it() -> ts.TensorStore:
        return ts.open(spec, context=context or process_context(), open=True).result()

    what = f"opening mip {mip} of graph {graph_id}"
    try:
        return retry_transport(open_it, what=what)[..., 0]
    except DamagedError as error:
        if is_of_another_database(error):
            reset_context()
            return retry_transport(open_it, what=what)[..., 0]
        if version is not None and error.code == "NOT_FOUND" and error.place is None:
            raise NotFoundError(
                f"the fork of graph {graph_id!r} has no version {version}.",
                remedy="Its history may begin later, or end before.",
            ) from error
        raise


def is_current(volume: ts.TensorStore) -> bool:
    """Whether a volume that was opened earlier shows the database that is at its place now; one small read."""
    kvstore = volume.kvstore
    return kvstore is None or not remembers_another(kvstore)


def open_fork_store(
    watershed_url: str | Path, graph_id: str, *, version: ocdbt.Version | None = None
) -> ocdbt.OcdbtStore:
    """All handles of a fork (keys and mips) that may take part in one commit; for writers.

    Raises
    ------
    NotFoundError
        If there is no such fork.
    """
    base = _readable(watershed_url, graph_id, 0, version)
    return ocdbt.OcdbtStore(_fork_spec(base, graph_id, version))


def current_generation(watershed_url: str | Path, graph_id: str) -> int:
    """Number of the latest commit of a fork, read now; what to pin to."""
    return current_version(open_fork_store(watershed_url, graph_id).base).generation


def reader_contract(
    watershed_url: str | Path, graph_id: str, *, version: ocdbt.Version | None = None
) -> dict[str, Any]:
    """Everything that a reader of a graph's voxels needs, as JSON: a spec per mip, and where the mips lie.

    ``generation`` is the fork's latest commit at the time of the call.
    """
    base = _readable(watershed_url, graph_id, 0, version)
    spec = _fork_spec(base, graph_id, version)
    contract = {
        "graph_id": graph_id,
        "watershed": base.watershed_url,
        "data_type": base.volume.data_type,
        "generation": current_generation(watershed_url, graph_id),
        "version": version,
        "mips": [
            {
                "mip": mip,
                "resolution": list(scale.resolution),
                "voxel_offset": list(scale.voxel_offset),
                "size": list(scale.size),
                "storage_chunk": list(scale.chunk_size),
                "spec": ocdbt.array_spec(spec, mip),
            }
            for mip, scale in enumerate(base.volume.scales)
        ],
        "neuroglancer": neuroglancer_url(watershed_url, graph_id),
    }
    # It is published: a reader brings credentials of its own.
    return dict(redacted_value(contract))


def neuroglancer_url(watershed_url: str | Path, graph_id: str) -> str | None:
    """Source URL of a fork for neuroglancer.

    None where it cannot be had: places that a browser cannot read (``file``, ``memory``), and numbered manifests, whose
    layer needs ``strip_prefix``, which neuroglancer does not know.
    """
    base = _readable(watershed_url, graph_id, 0, None)
    if not base.watershed_url.startswith("gs://") or base.form.manifest_kind == "numbered":
        return None
    layers = _fork_spec(base, graph_id, None)["base"]["layers"]
    stack = quote(json.dumps({"layers": layers}, separators=(",", ":")), safe="")
    return f"kvstack:{stack}/|ocdbt:|neuroglancer-precomputed:"


def _fork_spec(base: BaseInfo, graph_id: str, version: ocdbt.Version | None) -> dict[str, Any]:
    return base.fork_spec(graph_id, version)


def _readable(watershed_url: str | Path, graph_id: str, mip: int, version: ocdbt.Version | None) -> BaseInfo:
    url = kv.as_url(watershed_url)
    if isinstance(version, bool) or (isinstance(version, int) and version < 1):
        raise ConfigError(f"generation {version!r} cannot be read.", remedy="Generations are numbered from 1.")
    if isinstance(version, str) and not _TIME.fullmatch(version):
        raise ConfigError(f"{version!r} is not a time.", remedy="Write it as 2026-01-31T12:00:00Z, with the Z.")
    require_fork(url, graph_id)
    base = read_base(url)
    if not 0 <= mip < base.n_mips:
        raise NotFoundError(f"the fork of graph {graph_id!r} has no mip {mip}.", remedy=f"It has {base.n_mips} mips.")
    return base
