"""Makes a fork, and the record of it that protects the base.

A fork starts as a copy of the base's manifest, one small object whatever the size of the base. If manifests are
numbered, the latest one holds everything that a reader needs. It is copied first, and then the one without a number,
with which the fork exists.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from sv_pipeline.errors import ConflictError, CorruptionError, DamagedError
from sv_pipeline.segmentation.base.base import FORKS, IN_PLACE, BaseInfo
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.stored_json import parse_stored

__all__ = ["adopt_files", "check_record", "copy_manifests", "is_in_place", "note_fork", "prefix_of", "read_manifest"]

_logger = logging.getLogger(__name__)


def copy_manifests(base: BaseInfo, graph_id: str) -> None:
    """Make a fork that does not exist yet; raise ConflictError if another process is faster."""
    url = base.watershed_url
    folder, target = ocdbt.base_folder(url), ocdbt.fork_folder(url, graph_id)
    latest = _latest_numbered(folder) if base.form.manifest_kind == "numbered" else None
    manifest = kv.read_bytes(folder, ocdbt.SINGLE_MANIFEST)
    if manifest is None:
        raise CorruptionError(
            f"the base at {folder} has lost its manifest.",
            remedy="Remove the base (sv-pipeline retire-base) and populate it again.",
        )
    kv.write_bytes(ocdbt.ocdbt_folder(url), FORKS + graph_id, _record(base, graph_id))
    _remove_leftovers(target, keep=latest)
    if latest is not None:
        numbered = kv.read_bytes(folder, latest)
        if numbered is None:
            raise CorruptionError(f"{folder}{latest} vanished while it was copied.", repeat="Try again.")
        kv.write_bytes(target, latest, numbered)
    if not kv.write_if_absent(target, ocdbt.SINGLE_MANIFEST, manifest):
        raise ConflictError(f"somebody else has just forked {url} for graph {graph_id!r}.", remedy="Use that fork.")
    _logger.info("forked the base of %s for graph %s", url, graph_id)


def _record(base: BaseInfo, graph_id: str, **more: str) -> bytes:
    now = datetime.now(UTC).isoformat()
    content = {"graph_id": graph_id, "time": now, "manifest_kind": base.form.manifest_kind, **more}
    return json.dumps(content).encode()


def note_fork(base: BaseInfo, graph_id: str, *, in_place: bool) -> None:
    """Add a fork that other software made to the list of forks; its files are not changed."""
    more = {"place": "base"} if in_place else {}
    kv.write_if_absent(ocdbt.ocdbt_folder(base.watershed_url), FORKS + graph_id, _record(base, graph_id, **more))


def is_in_place(watershed_url: str, graph_id: str) -> bool:
    """Return whether a graph is listed as one whose voxels are the base itself."""
    return IN_PLACE in (kv.read_bytes(ocdbt.ocdbt_folder(watershed_url), FORKS + graph_id) or b"")


def read_manifest(watershed_url: str, graph_id: str) -> bytes | None:
    """Read the manifest of a fork, which names the root of all that it holds unless it is numbered; None without it."""
    return kv.read_bytes(ocdbt.fork_folder(watershed_url, graph_id), ocdbt.SINGLE_MANIFEST)


def prefix_of(graph_id: str, stored: bytes | None) -> str:
    """Return the prefix of a fork's data files, given the content of the file that states it, if there is one."""
    return ocdbt.data_prefix(graph_id) if stored is None else stored.decode()


def adopt_files(base: BaseInfo, graph_id: str, prefix: str, manifest: bytes) -> None:
    """Make a fork of copied data files that are in its folder already, below ``prefix``; it exists from then on.

    Raises
    ------
    ConflictError
        If there is a fork with another manifest.
    """
    url, target = base.watershed_url, ocdbt.fork_folder(base.watershed_url, graph_id)
    kv.write_bytes(ocdbt.ocdbt_folder(url), FORKS + graph_id, _record(base, graph_id))
    if prefix != ocdbt.data_prefix(graph_id):
        kv.write_bytes(target, ocdbt.OWN_PREFIX, prefix.encode())
    if not kv.write_if_absent(target, ocdbt.SINGLE_MANIFEST, manifest):
        raise ConflictError(f"graph {graph_id!r} has a fork at {target}.", remedy="Use another graph id.")


def _remove_leftovers(target: str, *, keep: str | None) -> None:
    """Remove the remains of a killed removal or creation. ``keep`` may be the manifest of another running creator."""
    leftovers = [key for key in kv.list_keys(target) if key not in (keep, ocdbt.SINGLE_MANIFEST)]
    # The order matters: files that were listed while there is still no fork do not belong to one.
    if leftovers and kv.read_bytes(target, ocdbt.SINGLE_MANIFEST) is None:
        kv.delete_keys(target, leftovers)


def _latest_numbered(folder: str) -> str:
    numbered = [key for key in kv.list_keys(folder, "manifest.") if key != ocdbt.SINGLE_MANIFEST]
    if not numbered:
        raise CorruptionError(
            f"the base at {folder} has no numbered manifest.",
            remedy="Remove the base (sv-pipeline retire-base) and populate it again.",
        )
    return max(numbered)


def check_record(base: BaseInfo, graph_id: str) -> None:
    """Raise DamagedError unless the list of forks, which protects the base from being wiped, names this one."""
    folder = ocdbt.ocdbt_folder(base.watershed_url)
    place, raw = f"{folder}{FORKS}{graph_id}", kv.read_bytes(folder, FORKS + graph_id)
    form = {"graph_id": graph_id, "time": "...", "manifest_kind": base.form.manifest_kind}
    remedy = f"Write {json.dumps(form)} there; without it, the base could be wiped although this fork needs it."
    if raw is None:
        raise DamagedError(f"{place} is missing.", remedy=remedy, place=place)
    if parse_stored(raw, dict[str, str], place, remedy=remedy).get("graph_id") != graph_id:
        raise DamagedError(f"{place} does not name graph {graph_id!r}.", remedy=remedy, place=place)
