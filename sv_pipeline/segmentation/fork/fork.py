"""Owns forks: making one, its state, and removing it. How one is read is in `reader`; its spec in `specs`.

A fork starts as a copy of the base's manifest, one small object whatever the size of the base. Where manifests are
numbered, the latest of them holds all that a reader needs; it is copied first, and then the one without a number, which
makes the fork exist.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from sv_pipeline.config import validate_graph_id
from sv_pipeline.errors import ConflictError, CorruptionError, DamagedError, NotFoundError, NotReadyError
from sv_pipeline.segmentation.base import markers
from sv_pipeline.segmentation.base.base import FORKS, BaseInfo, read_base
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.stored_json import parse_stored

__all__ = ["create_fork", "fork_exists", "fork_has_commits", "remove_fork", "require_fork"]

_logger = logging.getLogger(__name__)


def create_fork(watershed_url: str | Path, graph_id: str, *, recreate: bool = False, force: bool = False) -> None:
    """Fork the base for one graph. Copies no voxel.

    Parameters
    ----------
    watershed_url
        Folder of the watershed.
    graph_id
        Names the fork and its folder.
    recreate
        Start again from the base if the fork exists.
    force
        Also if the fork has commits of its own. Danger: the edits in it are lost.

    Raises
    ------
    NotReadyError
        If the populate of the base is not complete; says how many tasks are missing.
    ConflictError
        If the fork exists (without ``recreate``), or has commits (without ``force``).
    """
    url = kv.as_url(watershed_url)
    validate_graph_id(graph_id)
    require_complete(url)
    base = read_base(url)
    if fork_exists(url, graph_id):
        if not recreate:
            raise ConflictError(
                f"graph {graph_id!r} has a fork at {ocdbt.fork_folder(url, graph_id)}.",
                remedy="Use another graph id, or recreate it.",
            )
        remove_fork(url, graph_id, force=force)
    _copy_manifests(base, graph_id)


def _copy_manifests(base: BaseInfo, graph_id: str) -> None:
    url = base.watershed_url
    folder, target = ocdbt.base_folder(url), ocdbt.fork_folder(url, graph_id)
    latest = _latest_numbered(folder) if base.form.manifest_kind == "numbered" else None
    manifest = kv.read_bytes(folder, ocdbt.SINGLE_MANIFEST)
    if manifest is None:
        raise CorruptionError(f"the base at {folder} has lost its manifest.", remedy="Wipe it and populate it again.")
    record = {"graph_id": graph_id, "time": datetime.now(UTC).isoformat(), "manifest_kind": base.form.manifest_kind}
    kv.write_bytes(ocdbt.ocdbt_folder(url), FORKS + graph_id, json.dumps(record).encode())
    _remove_leftovers(url, graph_id, keep=latest)
    if latest is not None:
        numbered = kv.read_bytes(folder, latest)
        if numbered is None:
            raise CorruptionError(f"{folder}{latest} vanished while it was copied.", repeat="Try again.")
        kv.write_bytes(target, latest, numbered)
    if not kv.write_if_absent(target, ocdbt.SINGLE_MANIFEST, manifest):
        raise ConflictError(f"somebody else has just forked {url} for graph {graph_id!r}.", remedy="Use that fork.")
    _logger.info("forked the base of %s for graph %s", url, graph_id)


def _remove_leftovers(watershed_url: str, graph_id: str, *, keep: str | None) -> None:
    """Remove what a removal or creation that was killed has left; ``keep`` may be that of another creator at work."""
    target = ocdbt.fork_folder(watershed_url, graph_id)
    leftovers = [key for key in kv.list_keys(target) if key not in (keep, ocdbt.SINGLE_MANIFEST)]
    # Looked at in this order: what was there while there is still no fork does not belong to one.
    if leftovers and not fork_exists(watershed_url, graph_id):
        kv.delete_keys(target, leftovers)


def _latest_numbered(folder: str) -> str:
    numbered = [key for key in kv.list_keys(folder, "manifest.") if key != ocdbt.SINGLE_MANIFEST]
    if not numbered:
        raise CorruptionError(f"the base at {folder} has no numbered manifest.", remedy="Wipe and populate it again.")
    return max(numbered)


def require_complete(watershed_url: str | Path) -> None:
    """Raise NotReadyError, saying what to run, unless the populate of the base is complete."""
    if markers.read_complete(watershed_url) is not None:
        return
    read_base(watershed_url)
    meta = markers.read_meta(watershed_url)
    url = kv.as_url(watershed_url)
    if meta is None:
        raise NotReadyError(f"the base of {url} has not been populated.", remedy="Run the populate first.")
    n_tasks = meta.grid.count(meta.layer)
    n_missing = n_tasks - len(markers.done_tasks(url))
    if n_missing:
        raise NotReadyError(
            f"the populate of the base of {url} is not complete: {n_missing} of {n_tasks} tasks (layer {meta.layer}) "
            "are missing.",
            remedy="Run the missing populate tasks, then finish the populate (finish_populate).",
        )
    raise NotReadyError(
        f"all {n_tasks} populate tasks of the base of {url} are done, but the populate is not finished.",
        remedy="Finish the populate (finish_populate).",
    )


def fork_exists(watershed_url: str | Path, graph_id: str) -> bool:
    """Whether a graph has a fork."""
    return kv.read_bytes(ocdbt.fork_folder(watershed_url, graph_id), ocdbt.SINGLE_MANIFEST) is not None


def check_record(watershed_url: str | Path, graph_id: str) -> None:
    """Raise DamagedError unless the list of forks, which protects the base from being wiped, names this one."""
    folder = ocdbt.ocdbt_folder(watershed_url)
    place, raw = f"{folder}{FORKS}{graph_id}", kv.read_bytes(folder, FORKS + graph_id)
    form = {"graph_id": graph_id, "time": "...", "manifest_kind": read_base(watershed_url).form.manifest_kind}
    remedy = f"Write {json.dumps(form)} there; without it, the base could be wiped although this fork needs it."
    if raw is None:
        raise DamagedError(f"{place} is missing.", remedy=remedy, place=place)
    if parse_stored(raw, dict[str, str], place, remedy=remedy).get("graph_id") != graph_id:
        raise DamagedError(f"{place} does not name graph {graph_id!r}.", remedy=remedy, place=place)


def require_fork(watershed_url: str | Path, graph_id: str) -> None:
    """Raise NotFoundError unless the graph has a fork. To be called before any write: TensorStore would make one up."""
    if not fork_exists(watershed_url, graph_id):
        raise NotFoundError(
            f"graph {graph_id!r} has no fork of the segmentation at {kv.as_url(watershed_url)}.",
            remedy="Check the graph id, or create the fork first (create_fork).",
        )


def fork_has_commits(watershed_url: str | Path, graph_id: str) -> bool:
    """Whether anything has been written to a fork since it was made."""
    # Every commit writes at least one node of the B+tree below the fork's own data prefix.
    return bool(kv.list_keys(ocdbt.fork_folder(watershed_url, graph_id), ocdbt.data_prefix(graph_id)))


def remove_fork(watershed_url: str | Path, graph_id: str, *, force: bool = False) -> None:
    """Remove a fork through the driver of its folder.

    Danger: with ``force`` the edits of the graph's voxels are lost.

    Raises
    ------
    ConflictError
        If the fork has commits of its own and ``force`` is not set.
    """
    if not force and fork_has_commits(watershed_url, graph_id):
        raise ConflictError(
            f"the fork of graph {graph_id!r} holds edits, which would be lost.",
            remedy="Use force if that is what you want.",
        )
    folder = ocdbt.fork_folder(watershed_url, graph_id)
    # Manifests first: from then on there is no fork, rather than one that has lost data.
    kv.delete_key(folder, ocdbt.SINGLE_MANIFEST)
    kv.delete_prefix(folder)
    kv.delete_key(ocdbt.ocdbt_folder(watershed_url), FORKS + graph_id)
