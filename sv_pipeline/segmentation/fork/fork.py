"""Owns `Fork`: one graph's copy-on-write version of its watershed's voxels.

Forks are made in `making`; the fork's own keys are in `records`, commits in `commit`, and the ledger of coarser mips in
`pending`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorstore as ts

from sv_pipeline.config import validate_graph_id
from sv_pipeline.errors import ConflictError, DamagedError, NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.base.base import FORKS, Base, BaseInfo
from sv_pipeline.segmentation.fork import commit, records
from sv_pipeline.segmentation.fork.contract import neuroglancer_url, published_folder, reader_contract
from sv_pipeline.segmentation.fork.horizon import no_such_version
from sv_pipeline.segmentation.fork.making import copy_manifests, is_in_place, note_fork, prefix_of, read_manifest
from sv_pipeline.segmentation.fork.pending import Lag, PendingEntry, add_pending, lag_of, read_entries
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.context import is_of_another_database, process_context, remembers_another, reset_context
from sv_pipeline.storage.file_guard import heal
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.waiting import doing

__all__ = ["Fork", "is_current"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, init=False)
class Fork:
    """The fork of one graph: a value that can be sent to other processes. Each method opens the stored data.

    All methods except `create`, `exists`, `remove` and `has_commits` raise NotFoundError if the fork does not exist.
    This is checked before anything is written, because TensorStore would create an empty store.
    """

    watershed_url: str
    """Folder of the watershed."""
    graph_id: str
    """Id of the graph, which names the fork and its folder."""

    def __init__(self, watershed_url: str | Path, graph_id: str) -> None:
        object.__setattr__(self, "watershed_url", kv.as_url(watershed_url))
        object.__setattr__(self, "graph_id", graph_id)

    @property
    def base(self) -> Base:
        """The base that all forks of this watershed share."""
        return Base(self.watershed_url)

    @property
    def folder(self) -> str:
        """Folder of the fork's own files."""
        return self.base.folder if self.is_in_place() else self._folder

    @property
    def _folder(self) -> str:
        return ocdbt.fork_folder(self.watershed_url, self.graph_id)

    @property
    def data_prefix(self) -> str:
        """Prefix of the fork's own data files, in its folder and in the key space of its store."""
        return prefix_of(self.graph_id, kv.read_bytes(self._folder, ocdbt.OWN_PREFIX))

    # -- existence -----------------------------------------------------------------------------------------------------

    def create(self, *, recreate: bool = False, force: bool = False) -> None:
        """Fork the base, without copying any voxels.

        Parameters
        ----------
        recreate
            Whether to start again from the base if the fork exists.
        force
            Whether to do so even if the fork has commits of its own. Danger: the edits in it are lost.

        Raises
        ------
        NotReadyError
            If the populate of the base is not complete; the message says how many tasks are missing.
        ConflictError
            If the fork exists (without ``recreate``), or has commits (without ``force``).
        """
        validate_graph_id(self.graph_id)
        self.base.require_complete()
        base = self.base.info()
        if self.exists():
            if not recreate:
                raise ConflictError(
                    f"graph {self.graph_id!r} has a fork at {self.folder}.",
                    remedy="Use another graph id, or recreate it.",
                )
            self.remove(force=force)
        copy_manifests(base, self.graph_id)

    def adopt(self, *, in_place: bool = False) -> None:
        """Add a fork that other software made to the list that protects the base. Its files are not changed.

        Parameters
        ----------
        in_place
            Set if the graph has no fork: its voxels are the base itself, which other software edits in place, and which
            our edits change from now on. Operations of two graphs cannot share the keys of one store, so only one graph
            can use a base in this way.

        Raises
        ------
        NotFoundError
            If there is no such fork or base.
        ConflictError
            If the voxels of another graph are the base itself.
        """
        info = self.base.info()
        if in_place and (others := [name for name in self.base.forks() if name != self.graph_id]):
            raise ConflictError(
                f"the store {self.base.folder} cannot be edited for graph {self.graph_id!r}: it belongs to "
                f"{', '.join(others)}.",
                remedy="Use a copy of the watershed folder for one of them.",
            )
        if not in_place:
            self.require()
        note_fork(info, self.graph_id, in_place=in_place)

    def exists(self) -> bool:
        """Return whether the graph has a fork, or uses the base itself."""
        return read_manifest(self.watershed_url, self.graph_id) is not None or self.is_in_place()

    def is_in_place(self) -> bool:
        """Return whether the graph's voxels are the base itself; see `adopt`."""
        return is_in_place(self.watershed_url, self.graph_id)

    def require(self) -> None:
        """Raise NotFoundError unless the graph has a fork."""
        if not self.exists():
            raise NotFoundError(
                f"graph {self.graph_id!r} has no fork of the segmentation at {self.watershed_url}.",
                remedy="Check the graph id, or create the fork first (Fork.create).",
            )

    def has_commits(self) -> bool:
        """Return whether anything was written to the fork since it was made."""
        # Every commit writes at least one node of the B+tree below the fork's own data prefix.
        return bool(kv.list_keys(self._folder, self.data_prefix)) or self.is_in_place()

    def remove(self, *, force: bool = False) -> None:
        """Remove the fork through the driver of its folder.

        Danger: with ``force`` the edits of the graph's voxels are lost.

        Raises
        ------
        ConflictError
            If the fork has commits of its own and ``force`` is not set.
        """
        if self.is_in_place():
            raise ConflictError(
                f"the voxels of graph {self.graph_id!r} are the base itself, which other software made.",
                remedy="They are not removed from here.",
            )
        if not force and self.has_commits():
            raise ConflictError(
                f"the fork of graph {self.graph_id!r} holds edits, which would be lost.",
                remedy="Use force if that is what you want.",
            )
        # Manifests first: from then on there is no fork, rather than one that has lost data.
        kv.delete_key(self._folder, ocdbt.SINGLE_MANIFEST)
        kv.delete_prefix(self._folder)
        kv.delete_prefix(published_folder(self.watershed_url, self.graph_id))
        kv.delete_key(ocdbt.ocdbt_folder(self.watershed_url), FORKS + self.graph_id)

    # -- reading -------------------------------------------------------------------------------------------------------

    def base_info(self, *, mip: int = 0) -> BaseInfo:
        """Return the description of the fork's base; raise NotFoundError if there is no such fork or mip."""
        self.require()
        return self._base_with(mip)

    def _base_with(self, mip: int) -> BaseInfo:
        base = self.base.info()
        if not 0 <= mip < base.n_mips:
            missing = f"the fork of graph {self.graph_id!r} has no mip {mip}."
            raise NotFoundError(missing, remedy=f"It has {base.n_mips} mips.")
        return base

    def spec(self, mip: int | None = None, *, version: ocdbt.Version | None = None) -> dict[str, Any]:
        """Return the published spec: JSON that any TensorStore can open.

        Parameters
        ----------
        mip
            Mip whose voxels the spec opens; 0 is the finest. None returns the spec of the keys instead.
        version
            A generation, or a time ``YYYY-MM-DDTHH:MM:SS[.frac]Z``, which means the latest generation not after it. By
            default, each read sees the latest generation. A spec with a version is read-only.

        Raises
        ------
        NotFoundError
            If there is no such fork or mip.
        ConfigError
            If the version is not valid.
        """
        ocdbt.check_version(version)
        manifest, own = kv.read_many(self._folder, [ocdbt.SINGLE_MANIFEST, ocdbt.OWN_PREFIX])
        if manifest is None:
            self.require()
        base = self._base_with(mip or 0)
        if manifest is None:
            keys = base.spec(version=version)
        else:
            keys = base.fork_spec(self.graph_id, version, own=prefix_of(self.graph_id, own))
        return keys if mip is None else ocdbt.array_spec(keys, mip)

    def open(
        self, mip: int = 0, *, version: ocdbt.Version | None = None, context: ts.Context | None = None
    ) -> ts.TensorStore:
        """Open one mip as a 3-d TensorStore (x, y, z) in absolute coordinates of that mip.

        Parameters
        ----------
        version
            As for `spec`.
        context
            TensorStore context to use instead of that of this process, such as one without a cache for voxels that are
            read only once.

        Raises
        ------
        NotFoundError
            If there is no such fork, mip or version.
        """
        spec = self.spec(mip, version=version)
        heal(ocdbt.folder_of(spec["kvstore"]))

        def open_it() -> ts.TensorStore:
            return ts.open(spec, context=context or process_context(), open=True).result()

        what = f"opening mip {mip} of graph {self.graph_id}"
        try:
            return retry_transport(open_it, what=what)[..., 0]
        except DamagedError as error:
            if is_of_another_database(error):
                reset_context()
                return retry_transport(open_it, what=what)[..., 0]
            if version is not None and error.code == "NOT_FOUND" and error.place is None:
                raise no_such_version(self.store().base, f"the fork of graph {self.graph_id!r}", version) from error
            raise

    def store(self, *, version: ocdbt.Version | None = None) -> ocdbt.OcdbtStore:
        """Open the keys and mips as one store, whose handles can take part in one commit; for writers."""
        return ocdbt.OcdbtStore(self.spec(version=version))

    def generation(self) -> int:
        """Read the latest generation, the number of the latest commit. It can be passed as a ``version``."""
        return current_version(self.store().base).generation

    def generation_at(self, time: int, *, within: Box | None = None) -> int:
        """Return the generation that shows the fork as it was at a logical time.

        This is the last generation before the first commit of a later operation. Operations that share a chunk are
        committed in the order of their logical times, so the result is exact for the chunks that ``within`` touches.
        For a whole volume, it may lack operations up to ``time`` that were committed after a later one elsewhere.

        Parameters
        ----------
        time
            Milliseconds since the epoch; operations at exactly this time are included.
        within
            Box for which the result has to be exact; by default the whole volume counts.
        """
        return records.generation_at(self.store(), time, within)

    def contract(self, *, version: ocdbt.Version | None = None) -> dict[str, Any]:
        """Return what a reader of the voxels needs, for JSON: a spec and the bounds of each mip, and the generation."""
        keys = self.spec(version=version)
        return reader_contract(self.base_info(), self.graph_id, keys, self.generation())

    def neuroglancer_url(self) -> str | None:
        """Return the source URL for neuroglancer, or None if it cannot read the fork.

        A browser cannot read ``file`` and ``memory``; numbered manifests need ``strip_prefix``, which it does not know.
        """
        return neuroglancer_url(self.base_info(), self.spec())

    # -- operations ----------------------------------------------------------------------------------------------------

    def record(self, operation_id: int) -> records.OperationRecord | None:
        """Read the record of an operation; None if its voxels are not committed."""
        return records.record_in(self.store().kv, operation_id)

    def records(self, *, after: int = 0) -> list[records.OperationRecord]:
        """Read the records of committed operations with ids above ``after``, in order of their ids."""
        return records.records_in(self.store().kv, after)

    def generation_of(self, operation_id: int) -> int:
        """Return the generation in which the voxels of an operation were committed.

        Raises
        ------
        NotFoundError
            If they are not committed, or the history does not reach back to that generation.
        """
        store = self.store()
        record = records.record_in(store.kv, operation_id)
        if record is None:
            raise NotFoundError(
                f"operation {operation_id} has not changed voxels of graph {self.graph_id!r}.",
                remedy="Check its id; only supervoxel splits change voxels.",
            )
        return records.first_generation(store, record)

    def fence(self, operation_id: int) -> str | None:
        """Return the token of the only owner that may commit an operation; None if no process has claimed it."""
        return records.fence_in(self.store().kv, operation_id)

    def take_fence(self, operation_id: int, owner: str) -> str | None:
        """Claim an operation for ``owner``: no other owner can commit it from now on, even if its commit has begun.

        Returns
        -------
        str | None
            Token of the owner that had claimed it before; None if there was none.
        """
        store = self.store()
        with doing(f"claims operation {operation_id} of graph {self.graph_id}"):
            before = records.write_fence(store, operation_id, owner)
        _logger.info("operation %d of graph %s: fence %r, before %r", operation_id, self.graph_id, owner, before)
        return before

    def commit(self, edit: commit.EditCommit, *, store: ocdbt.OcdbtStore | None = None) -> commit.CommitResult:
        """Commit the voxels of an edit: all of them, in one generation, once; or nothing.

        This is safe to repeat with the same edit, which is not committed twice. ``store`` is what `store` returns, if
        the fork is open already.

        Raises
        ------
        InputError
            If the edit has no voxels, or voxels that are not uint64 inside the volume.
        ConflictError
            If somebody else has taken the operation over, or has committed it; nothing was written.
        UnavailableError
            If storage does not answer; the recovery of the operation finds out whether the commit is in.
        """
        with doing(f"commits the voxels of operation {edit.operation_id} of graph {self.graph_id}"):
            return commit.commit_edit(store or self.store(), self._base_with(0).volume, edit)

    def restore(
        self,
        operation_id: int,
        *,
        owner: str,
        boxes: Sequence[Box] | None = None,
        generation: ocdbt.Version | None = None,
    ) -> bool:
        """Restore the voxels that an operation changed, as they were before it, and remove its record, in one commit.

        Changes by other operations elsewhere remain. The boxes stay listed as pending, because coarser mips may have
        been made since.

        Parameters
        ----------
        owner
            Token of the owner that restores them, which must hold the operation's fence.
        boxes, generation
            The boxes to restore, and the generation or time to restore them from, for an operation of other software,
            which has no record.

        Returns
        -------
        bool
            False if there is nothing to restore: the operation has no record, and no boxes are given.

        Raises
        ------
        ConflictError
            If ``owner`` does not hold the fence.
        NotFoundError
            If the history does not reach back to that generation.
        """
        volume = self.base_info().volume
        with doing(f"puts back the voxels of operation {operation_id} of graph {self.graph_id}"):
            return commit.restore_operation(self.store(), volume, operation_id, owner, boxes, generation)

    # -- coarser mips --------------------------------------------------------------------------------------------------

    def pending(self) -> list[PendingEntry]:
        """Read the entries of operations whose coarser mips are behind; CorruptionError names an unreadable entry."""
        return read_entries(self.store().kv)

    def lag(self) -> Lag:
        """Return how far the coarser mips are behind."""
        return lag_of(self.pending())

    def ask_for(self, boxes: Sequence[Box] | None = None) -> None:
        """List boxes as pending, so that their coarser mips are made again; the whole volume by default."""
        store, bounds = self.store(), self.base_info().volume.bounds
        inside = [box.clip(bounds) for box in boxes or [bounds]]

        def write() -> None:
            with store.transaction(repeatable_read=True) as transaction:  # safe, since it touches only one key
                add_pending(store.kv.with_transaction(transaction), [box for box in inside if box.volume])

        retry_transport(write, what=f"asking for coarser mips of graph {self.graph_id}", attempts=8)


def is_current(volume: ts.TensorStore) -> bool:
    """Return whether a volume that was opened earlier shows the database that is in its place now; one small read."""
    kvstore = volume.kvstore
    return kvstore is None or not remembers_another(kvstore)
