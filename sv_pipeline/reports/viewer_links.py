"""Links that open a viewer at a place of a graph: our own viewer, and neuroglancer as anybody has it. Opens nothing.

A link to our own viewer is a command for a terminal, or an address if a viewer is served for everybody
(SV_PIPELINE_VIEWER_URL; see `sv_pipeline.viewer.team`). A link to neuroglancer holds the whole state of the view, so it
needs no server of ours; only a graph in a bucket has one, since a browser cannot read local files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import numpy as np

from sv_pipeline.errors import ConfigError, NotFoundError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import OperationStatus, asked_for, read_operation
from sv_pipeline.redaction import redacted
from sv_pipeline.registry import Dataset
from sv_pipeline.table.columns import SINK_COORDINATES, SOURCE_COORDINATES

__all__ = [
    "VIEWER_VARIABLE",
    "neuroglancer_link",
    "neuroglancer_source",
    "operation_link",
    "viewer_address",
    "viewer_link",
]

Voxel = tuple[int, int, int]

VIEWER_VARIABLE = "SV_PIPELINE_VIEWER_URL"
"""Environment variable with the address of a viewer that is served for everybody, as its command prints it."""
NEUROGLANCER_VARIABLE = "SV_PIPELINE_NEUROGLANCER_URL"
"""Environment variable with the address of neuroglancer's client."""
NEUROGLANCER = "https://neuroglancer-demo.appspot.com/"


def viewer_address() -> str | None:
    """Return the address of the viewer that is served for everybody, without a slash at its end; None if none is.

    Raises
    ------
    ConfigError
        If the environment variable holds anything else than an address.
    """
    return _address_in(VIEWER_VARIABLE, "the address that 'sv-pipeline view' prints if no graph is given")


def _address_in(variable: str, meaning: str) -> str | None:
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"{variable} is {redacted(text)!r}.", remedy=f"Set it to {meaning}, or unset it.")
    return text.rstrip("/")


def viewer_link(dataset: Dataset, *, operation: int | None = None, position: Voxel | None = None) -> str:
    """Return what opens a graph in our viewer: an address if a viewer is served for everybody, else a command.

    Parameters
    ----------
    operation
        Number of an operation that was made, to be shown before and after it.
    position
        Voxel of mip 0 to look at; default: the place of the operation, or the middle of the volume.
    """
    place: dict[str, Any] = {} if operation is None else {"operation": operation}
    if position is not None:
        place["position"] = ",".join(map(str, position))
    address = viewer_address()
    if address is None:
        # The home is named, since a terminal need not have the environment of the process that made the link.
        words = ["sv-pipeline", "--home", redacted(dataset.home), "view", dataset.graph_id]
        return shlex.join([*words, *(str(word) for name, value in place.items() for word in (f"--{name}", value))])
    query = f"?{urlencode(place, safe=',')}" if place else ""
    return f"{address}/{quote(dataset.graph_id)}{query}"


def operation_link(dataset: Dataset, operation_id: int) -> str:
    """Return what opens the place of an operation in our viewer: before and after it, if it was made."""
    graph = dataset.graph
    with contextlib.suppress(NotFoundError):
        if read_operation(graph, operation_id).status is OperationStatus.SUCCESS:
            return viewer_link(dataset, operation=operation_id)
        return viewer_link(dataset, position=_centre_of(graph, operation_id))
    return viewer_link(dataset)


def _centre_of(graph: ChunkedGraph, operation_id: int) -> Voxel | None:
    """Return the voxel in the middle of an operation's points; None if the log has none."""
    row = asked_for(graph, operation_id).row
    sides = [side for column in (SOURCE_COORDINATES, SINK_COORDINATES) if (side := column.newest(row)) is not None]
    points = np.concatenate([np.asarray(side).reshape(-1, 3) for side in sides]) if sides else np.zeros((0, 3))
    if not len(points):
        return None
    x, y, z = ((points.min(axis=0) + points.max(axis=0)) // 2).astype(int).tolist()
    return x, y, z


# -- neuroglancer without us ------------------------------------------------------------------------------------------


def neuroglancer_source(dataset: Dataset) -> tuple[str, str] | None:
    """Return what neuroglancer alone can read of a graph in a bucket: what it is, and its source; None elsewhere.

    Neuroglancer reads precomputed volumes and OCDBT databases, but not a stack of key spaces, of which a fork consists.
    So it can show the voxels of a graph that is edited in place, and of others the voxels before any edit.
    """
    url = dataset.watershed_url
    if not url.startswith("gs://"):
        return None
    fork = dataset.fork
    published = fork.neuroglancer_url()
    if published is not None and not published.startswith("kvstack:"):
        return "supervoxels", redacted(published)
    base = fork.base_info()
    if base.refers or base.form.manifest_kind == "numbered":
        return "supervoxels before edits", redacted(f"{url}|neuroglancer-precomputed:")
    return "supervoxels before edits", redacted(f"{base.spec()['base']}|ocdbt:|neuroglancer-precomputed:")


def neuroglancer_link(dataset: Dataset) -> str | None:
    """Return the address at which neuroglancer alone shows a graph in a bucket; None if it cannot read it."""
    found = neuroglancer_source(dataset)
    if found is None:
        return None
    name, source = found
    volume = dataset.volume
    resolution, bounds = volume.scales[0].resolution, volume.bounds
    state: Mapping[str, Any] = {
        "dimensions": {axis: [size * 1e-9, "m"] for axis, size in zip("xyz", resolution, strict=True)},
        "position": [(a + b) / 2 for a, b in zip(bounds.start, bounds.stop, strict=True)],
        "layers": [{"type": "segmentation", "source": source, "name": name}],
        "layout": "4panel",
    }
    client = _address_in(NEUROGLANCER_VARIABLE, "the address of a neuroglancer client") or NEUROGLANCER.rstrip("/")
    return f"{client}/#!{quote(json.dumps(state, separators=(',', ':')), safe=':,/')}"
