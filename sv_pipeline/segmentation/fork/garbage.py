"""Finds out what of a fork's files is in use, shortens its history, and deletes files that nothing refers to.

Only the fork's own manifest refers to the files below its data prefix, and it refers to them from nodes below that
prefix. So neither the base nor other forks are read, and nothing of them is deleted.

What must stay although nothing refers to it (yet), because of work in progress, the caller says by a function that
returns `Needs`. It is called after the manifest was read: work that begins later depends on later generations. The
order of steps, and the state after a kill at each of them, is in ``docs/design/015-life-of-a-store.md``.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import ConflictError, DamagedError, NotFoundError, UnavailableError
from sv_pipeline.failpoints import reach
from sv_pipeline.retention import Bound, DatedGeneration, Horizon, Retention, choose_horizon
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.file_guard import commit_guard, written
from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.history import ManifestFrom, PastGeneration, manifest_from, node_reader, read_history
from sv_pipeline.storage.reachable import Extent, Walk
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.stored_json import parse_stored
from sv_pipeline.storage.timed_files import TimedFile, delete_files, list_files, storage_time
from sv_pipeline.waiting import doing

__all__ = ["Collected", "Needs", "Pruned", "Usage", "collect", "prune", "usage"]

ATTEMPTS = 10
BACKOFF = Backoff(0.1, 5.0)
UNUSED = "unused.json"
"""File in the folder of a fork: the unused files by name, with the time since which they are known to be unused."""
REMOVE_NOTES = "Remove that file; unused files are then kept for another grace period."
FILES_AT_ONCE = 200
"""Number of files that are deleted while the writers of this disk wait."""

_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Needs:
    """What work in progress needs of a fork."""

    bounds: tuple[Bound, ...] = ()
    """The generations that it needs."""
    files_since: int | None = None
    """Time of the storage, in nanoseconds: it may have written any file since then, for a commit that is to follow."""
    unclear: tuple[str, ...] = ()
    """Reasons for which nothing can be said; then nothing is removed."""


NeedsNow = Callable[[], Needs]


@dataclass(frozen=True)
class Usage:
    """How much of the files of a fork is in use, and by what. Sizes are in bytes."""

    graph_id: str
    policy: str
    generations: int
    """Number of generations that can be read."""
    oldest: int
    oldest_time: int | None
    """Time of the oldest generation by the clock of the storage, in nanoseconds; None if it is older than the fork."""
    latest: int
    horizon: Horizon
    """Where the history would begin after a pruning by the policy."""
    unclear: tuple[str, ...]
    """Reasons for which nothing can be removed at present."""
    stored_files: int
    stored_bytes: int
    latest_bytes: int
    """What the latest generation refers to."""
    policy_bytes: int
    """What the generations refer to that the policy keeps."""
    reachable_bytes: int
    """What all present generations refer to."""
    orphan_files: int
    orphan_bytes: int
    """Files to which no generation refers."""
    collectable_bytes: int
    """Those of them that are known to be unused for the grace period, and can be deleted."""
    bytes_after: int
    """Size of the files to which the generations refer that the policy keeps."""

    @property
    def beside_bytes(self) -> int:
        """Bytes that nothing refers to, in files of which other bytes are in use."""
        return self.stored_bytes - self.orphan_bytes - self.reachable_bytes


@dataclass(frozen=True)
class Pruned:
    """Result of a pruning."""

    horizon: Horizon
    removed: int
    """Number of generations that were removed."""
    why_not: str = ""
    """Why nothing could be removed, if something is in the way."""


@dataclass(frozen=True)
class Collected:
    """Result of a collection."""

    files: int
    bytes: int
    waiting: int = 0
    """Number of unused files that are not deleted yet, because of the grace period."""
    why_not: str = ""
    """Why nothing could be deleted, if something is in the way."""


def usage(fork: Fork, policy: Retention, needs: NeedsNow, *, grace: timedelta | None = None) -> Usage:
    """Measure how much of a fork's files is in use; one small file is written and removed, to read the time.

    Parameters
    ----------
    needs
        Function that returns what work in progress needs.
    grace
        Grace period; default: that of the policy.
    """
    return _again(fork, lambda: _usage(fork, policy, needs, grace))


def _usage(fork: Fork, policy: Retention, needs: NeedsNow, grace: timedelta | None) -> Usage:
    sight = _look(fork, needs)
    history = sight.history
    horizon = choose_horizon(policy, history, sight.now, sight.needs.bounds, grace=grace)
    if sight.numbered or sight.needs.unclear:
        horizon = Horizon(history[0].number)
    roots, walk = sight.roots, sight.walk()
    walk.add_roots([roots[-1]])
    latest_bytes = walk.found.n_bytes
    walk.add_roots(root for one, root in zip(history, roots, strict=True) if one.number >= horizon.generation)
    policy_bytes, policy_files = walk.found.n_bytes, walk.found.files
    walk.add_roots(roots)
    walk.add_version_tree(sight.manifest)
    kept = walk.found.files
    orphans = [file for file in sight.files if file.name not in kept]
    return Usage(
        graph_id=fork.graph_id,
        policy=str(policy),
        generations=len(history),
        oldest=history[0].number,
        oldest_time=history[0].time,
        latest=history[-1].number,
        horizon=horizon,
        unclear=sight.needs.unclear,
        stored_files=len(sight.files),
        stored_bytes=_size(sight.files),
        latest_bytes=latest_bytes,
        policy_bytes=policy_bytes,
        reachable_bytes=walk.found.n_bytes,
        orphan_files=len(orphans),
        orphan_bytes=_size(orphans),
        collectable_bytes=_size(sight.due(orphans, sight.unused_since(orphans, policy, grace), policy, grace)),
        bytes_after=_size(file for file in sight.files if file.name in policy_files),
    )


def prune(fork: Fork, policy: Retention, needs: NeedsNow, *, grace: timedelta | None = None) -> Pruned:
    """Remove the generations of a fork that its policy does not keep; see `usage` for the parameters.

    The manifest is replaced on the condition that nobody has changed it meanwhile. The files of the removed generations
    stay until they are collected.

    Raises
    ------
    UnavailableError
        If other writers change the manifest each time; nothing was changed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        sight = _again(fork, lambda: _look(fork, needs))
        oldest = sight.history[0].number
        if policy.is_forever:
            return Pruned(Horizon(oldest), 0)
        if sight.numbered:
            return Pruned(Horizon(oldest), 0, "its manifests are numbered, so its whole history is kept")
        if sight.needs.unclear:
            return Pruned(Horizon(oldest), 0, "; ".join(sight.needs.unclear))
        horizon = choose_horizon(policy, sight.history, sight.now, sight.needs.bounds, grace=grace)
        if horizon.generation <= oldest:
            return Pruned(horizon, 0)
        reach("prune")
        file = f"{sight.prefix}{secrets.token_hex(16)}"
        new = manifest_from(sight.manifest, horizon.generation, node_reader(sight.store.base), file)
        with doing(f"shortens the history of graph {fork.graph_id}"):
            if _replace_manifest(sight, file, new):
                _logger.info("graph %s: %d generations pruned up to %d", fork.graph_id, new.removed, horizon.generation)
                return Pruned(horizon, new.removed)
        time.sleep(BACKOFF.jittered(attempt))
    raise UnavailableError(
        f"the history of graph {fork.graph_id!r} could not be shortened: others changed its manifest in each of "
        f"{ATTEMPTS} attempts.",
        remedy="Nothing was changed; wait until fewer edits are made.",
        repeat="Then run this again.",
    )


def collect(fork: Fork, policy: Retention, needs: NeedsNow, *, grace: timedelta | None = None) -> Collected:
    """Delete files of a fork to which no generation refers; see `usage` for the parameters.

    A file is deleted once it is known to be unused for the grace period: by then, nobody reads with a manifest from the
    time when it was used. An earlier call has noted it. If the process is killed, or another one does the same, fewer
    such files are left.
    """
    return _again(fork, lambda: _collect(fork, policy, needs, grace))


def _collect(fork: Fork, policy: Retention, needs: NeedsNow, grace: timedelta | None) -> Collected:
    files = list_files(fork.folder, fork.data_prefix)
    sight = _look(fork, needs, files)
    if sight.needs.unclear:
        return Collected(0, 0, why_not="; ".join(sight.needs.unclear))
    walk = sight.walk()
    walk.add_roots(sight.roots)
    walk.add_version_tree(sight.manifest)
    reach("collect")
    kept, known = walk.found.files, sight.latest
    orphans = [file for file in files if file.name not in kept]
    since = sight.unused_since(orphans, policy, grace)
    kv.write_bytes(fork.folder, UNUSED, json.dumps(since, indent=0).encode())
    reach("marked")
    due = sight.due(orphans, since, policy, grace)
    n_files = n_bytes = 0
    for first in range(0, len(due), FILES_AT_ONCE):
        with doing(f"deletes unused files of graph {fork.graph_id}"), commit_guard(fork.folder):
            # A commit may have been completed since; on disk none is under way while the guard is held.
            manifest = read_manifest(sight.store.base)
            if (latest := _latest(manifest)) != known:
                versions = [*walk.add_version_tree(manifest), *manifest["versions"]]
                walk.add_roots(version["root"].get("location") for version in versions)
                kept, known = walk.found.files, latest
            batch = [file for file in due[first : first + FILES_AT_ONCE] if file.name not in kept]
            half = len(batch) // 2
            delete_files(fork.folder, [file.name for file in batch[:half]])
            reach("collecting")
            delete_files(fork.folder, [file.name for file in batch[half:]])
        n_files, n_bytes = n_files + len(batch), n_bytes + _size(batch)
    reach("collected")
    _logger.info("graph %s: %d files of %d bytes deleted", fork.graph_id, n_files, n_bytes)
    return Collected(n_files, n_bytes, len(orphans) - len(due))


# -- what is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sight:
    """A fork at one moment."""

    store: ocdbt.OcdbtStore
    prefix: str
    """Prefix of the fork's own files."""
    numbered: bool
    files: list[TimedFile]
    now: int
    """Time of the storage, in nanoseconds."""
    stamp: bytes
    """Version of the manifest as the storage counts it; it is not newer than `manifest`."""
    manifest: dict[str, Any] = field(repr=False)
    needs: Needs
    history: list[DatedGeneration] = field(repr=False)
    roots: list[str | None] = field(repr=False)
    """Location of the root of each generation of the history."""

    @property
    def latest(self) -> int:
        """Latest generation."""
        return _latest(self.manifest)

    def limit(self, policy: Retention, grace: timedelta | None) -> int:
        """Return the time of the storage before which a file must have been written to be deleted."""
        since = self.now if self.needs.files_since is None else min(self.now, self.needs.files_since)
        return since - _margin(policy, grace)

    def unused_since(self, orphans: list[TimedFile], policy: Retention, grace: timedelta | None) -> dict[str, int]:
        """Return the times, in nanoseconds, since which unused files are known to be unused; without young files.

        A young file may be part of a commit that is still to come, so nothing is known about it.
        """
        raw = kv.read_bytes(self.store.folder, UNUSED)
        noted = (
            {} if raw is None else parse_stored(raw, dict[str, int], self.store.folder + UNUSED, remedy=REMOVE_NOTES)
        )
        limit = self.limit(policy, grace)
        return {file.name: min(self.now, noted.get(file.name, self.now)) for file in orphans if file.time < limit}

    def due(
        self, orphans: list[TimedFile], since: dict[str, int], policy: Retention, grace: timedelta | None
    ) -> list[TimedFile]:
        """Return the unused files that can be deleted."""
        before = self.now - _margin(policy, grace)
        return [file for file in orphans if file.name in since and since[file.name] <= before]

    def walk(self) -> Walk:
        """Begin a walk over the fork's own nodes."""
        return Walk(self.store.base, (self.prefix,))


def _look(fork: Fork, needs: NeedsNow, files: list[TimedFile] | None = None) -> _Sight:
    """Look at a fork; the order of the steps matters, see the docstring of the module."""
    if fork.is_in_place():
        raise ConflictError(
            f"the voxels of graph {fork.graph_id!r} are the base itself, which other software edits.",
            remedy="Its history is not shortened, and its files are not deleted from here.",
        )
    fork.require()
    store, prefix = fork.store(), fork.data_prefix
    files = list_files(fork.folder, prefix) if files is None else files
    now = storage_time(fork.folder, prefix)
    stamp = _stamp(fork)
    if not stamp:
        raise NotFoundError(f"the fork of graph {fork.graph_id!r} was removed.", remedy="There is nothing to do.")
    manifest = read_manifest(store.base)
    reach("looked")
    needed = needs()
    history = read_history(store.base, manifest)
    dated = _dated(history, prefix, {file.name: file.time for file in files}, now)
    numbered = fork.base.info().form.manifest_kind == "numbered"
    roots = [one.root for one in history]
    return _Sight(store, prefix, numbered, files, now, stamp, manifest, needed, dated, roots)


def _dated(history: list[PastGeneration], prefix: str, times: dict[str, int], now: int) -> list[DatedGeneration]:
    """Give each generation the time of the file of its root, but not an earlier time than that of those before."""
    dated: list[DatedGeneration] = []
    newest: int | None = None
    for one in history:
        file = None if one.root is None else Extent.parse(one.root)[1].file
        if file is not None and file.startswith(prefix):
            found = times.get(file, now)  # one that is not listed was written since
            newest = found if newest is None else max(found, newest)
        dated.append(DatedGeneration(one.number, newest, one.commit_time))
    return dated


def _replace_manifest(sight: _Sight, file: str, new: ManifestFrom) -> bool:
    """Write new nodes, then the manifest, if it is still the one that was read; return whether it was replaced.

    If it was not, the file of the nodes stays, because a storage may apply a write and lose its answer. The file is
    collected if nothing refers to it.
    """
    folder = sight.store.folder
    if new.nodes:
        kv.write_bytes(folder, file, new.nodes)
    reach("prune nodes")
    with commit_guard(folder):
        write = kv.open_kv(folder).write(ocdbt.SINGLE_MANIFEST, new.manifest, if_equal=sight.stamp)
        replaced = bool(written(write, folder, ocdbt.SINGLE_MANIFEST).generation)
    reach("pruned")
    return replaced


def _margin(policy: Retention, grace: timedelta | None) -> int:
    """Return the grace period in nanoseconds."""
    return (policy.grace if grace is None else grace) // timedelta(microseconds=1) * 1000


def _again(fork: Fork, look: Callable[[], Result]) -> Result:
    """Call a function that reads the history; call it again if another process has shortened the history meanwhile."""
    for _ in range(ATTEMPTS):
        before = _stamp(fork)
        try:
            return look()
        except DamagedError:
            if _stamp(fork) == before:
                raise
    return look()


def _stamp(fork: Fork) -> bytes:
    """Return the version of the manifest as the storage counts it; empty if there is none."""
    found = retry_transport(
        lambda: kv.open_kv(fork.folder).read(ocdbt.SINGLE_MANIFEST, byte_range=slice(0, 0)).result(),
        what=f"reading the manifest of graph {fork.graph_id}",
    )
    return b"" if found.state != "value" else bytes(found.stamp.generation)


def _latest(manifest: dict[str, Any]) -> int:
    return int(manifest["versions"][-1]["generation_number"])


def _size(files: Iterable[TimedFile]) -> int:
    return sum(file.size for file in files)
