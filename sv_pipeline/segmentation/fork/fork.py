"""Owns the noun `Fork`: one graph's own copy-on-write version of its watershed's voxels.

How one is made is in `making`, its own keys are in `records`, commits in `commit`, the ledger of coarser mips in
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
from sv_pipeline.segmentation.fork.making import copy_manifests, is_in_place, note_fork
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
    """The fork of one graph: a value that other processes can be sent. It opens what is stored when it is asked.

    All methods but `create`, `exists`, `remove` and `has_commits` raise NotFoundError if there is no such fork.
    TensorStore would make one up, so this is found out before anything is written.
    """

    watershed_url: str
    """Folder of the watershed."""
    graph_id: str
    """Names the fork and its folder."""

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

    # -- being there ---------------------------------------------------------------------------------------------------

    def create(self, *, recreate: bool = False, force: bool = False) -> None:
        """Fork the base. Copies no voxel.

        Parameters
        ----------
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
        """Enter the fork in the list that protects the base, if other software made it. Its files stay as they are.

        Parameters
        ----------
        in_place
            The graph has no fork: its voxels are the base itself, which other software edits in place. So do edits from
            now on. Operations of two graphs cannot share the keys of one store, so only one graph can have this.

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
        """Whether the graph has a fork, or the base itself for its voxels."""
        return kv.read_bytes(self._folder, ocdbt.SINGLE_MANIFEST) is not None or self.is_in_place()

    def is_in_place(self) -> bool:
        """Whether the graph's voxels are the base itself; see `adopt`."""
        return is_in_place(self.watershed_url, self.graph_id)

    def require(self) -> None:
        """Raise NotFoundError unless the graph has a fork."""
        if not self.exists():
            raise NotFoundError(
                f"graph {self.graph_id!r} has no fork of the segmentation at {self.watershed_url}.",
                remedy="Check the graph id, or create the fork first (Fork.create).",
            )

    def has_commits(self) -> bool:
        """Whether anything has been written to the fork since it was made."""
        # Every commit writes at least one node of the B+tree below the fork's own data prefix.
        return bool(kv.list_keys(self._folder, ocdbt.data_prefix(self.graph_id))) or self.is_in_place()

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
        """What the base is that this fork was made of; NotFoundError if there is no such fork or mip."""
        self.require()
        return self._base_with(mip)

    def _base_with(self, mip: int) -> BaseInfo:
        base = self.base.info()
        if not 0 <= mip < base.n_mips:
            raise NotFoundError(
                f"the fork of graph {self.graph_id!r} has no mip {mip}.", remedy=f"It has {base.n_mips} mips."
            )
        return base

    def spec(self, mip: int | None = None, *, version: ocdbt.Version | None = None) -> dict[str, Any]:
        """The published spec: JSON that any TensorStore opens as it is.

        Parameters
        ----------
        mip
            0 = finest. None: the spec of the keys, instead of that of voxels.
        version
            Generation, or time ``YYYY-MM-DDTHH:MM:SS[.frac]Z`` (the latest generation not after it); default: the
            latest whenever it is read. A pinned spec is read-only.

        Raises
        ------
        NotFoundError
            If there is no such fork or mip.
        ConfigError
            If the version is written wrongly.
        """
        ocdbt.check_version(version)
        own = kv.read_bytes(self._folder, ocdbt.SINGLE_MANIFEST) is not None
        if not own:
            self.require()
        base = self._base_with(mip or 0)
        keys = base.fork_spec(self.graph_id, version) if own else base.spec(version=version)
        return keys if mip is None else ocdbt.array_spec(keys, mip)

    def open(
        self, mip: int = 0, *, version: ocdbt.Version | None = None, context: ts.Context | None = None
    ) -> ts.TensorStore:
        """Open one mip as a 3-d store (x, y, z) in absolute coordinates of that mip.

        Parameters
        ----------
        version
            As for `spec`.
        context
            Other than that of this process; one without a cache for voxels that are read once.

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
                raise NotFoundError(
                    f"the fork of graph {self.graph_id!r} has no version {version}.",
                    remedy="Its history may begin later, or end before.",
                ) from error
            raise

    def store(self, *, version: ocdbt.Version | None = None) -> ocdbt.OcdbtStore:
        """All handles (keys and mips) that may take part in one commit; for writers."""
        return ocdbt.OcdbtStore(self.spec(version=version))

    def generation(self) -> int:
        """Number of the latest commit, read now; what to pin to."""
        return current_version(self.store().base).generation

    def generation_at(self, time: int, *, within: Box | None = None) -> int:
        """The generation that shows the fork as it was at a logical time.

        That is the last one before the first commit of a later operation. Operations that share a chunk are committed
        in the order of their logical times, so for the chunks that ``within`` touches the answer is exact. For a whole
        volume it may lack operations up to ``time`` that were committed after a later one elsewhere.

        Parameters
        ----------
        time
            Milliseconds; operations of this very time are in.
        within
            Where it matters; default: everywhere.
        """
        return records.generation_at(self.store(), time, within)

    def contract(self, *, version: ocdbt.Version | None = None) -> dict[str, Any]:
        """Everything that a reader of a graph's voxels needs, as JSON: a spec per mip, and where the mips lie.

        ``generation`` is the fork's latest commit at the time of the call.
        """
        keys = self.spec(version=version)
        return reader_contract(self.base_info(), self.graph_id, keys, self.generation())

    def neuroglancer_url(self) -> str | None:
        """Source URL for neuroglancer.

        None where it cannot be had: places that a browser cannot read (``file``, ``memory``), and numbered manifests,
        whose layer needs ``strip_prefix``, which neuroglancer does not know.
        """
        return neuroglancer_url(self.base_info(), self.spec())

    # -- operations ----------------------------------------------------------------------------------------------------

    def record(self, operation_id: int) -> records.OperationRecord | None:
        """The record of an operation; None if its voxels are not in."""
        return records.record_in(self.store().kv, operation_id)

    def records(self, *, after: int = 0) -> list[records.OperationRecord]:
        """Records of the operations later than ``after`` whose voxels are in, by operation id."""
        return records.records_in(self.store().kv, after)

    def generation_of(self, operation_id: int) -> int:
        """Generation that brought the voxels of an operation in.

        Raises
        ------
        NotFoundError
            If they are not in, or the history does not reach back to that generation.
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
        """Token of the only owner that may commit an operation; None if nobody has claimed it."""
        return records.fence_in(self.store().kv, operation_id)

    def take_fence(self, operation_id: int, owner: str) -> str | None:
        """Claim an operation for ``owner``: nobody else can commit it from now on, not even a commit that has begun.

        Returns
        -------
        str | None
            Token of the owner that had claimed it before.
        """
        store = self.store()
        with doing(f"claims operation {operation_id} of graph {self.graph_id}"):
            before = records.write_fence(store, operation_id, owner)
        _logger.info("operation %d of graph %s: fence %r, before %r", operation_id, self.graph_id, owner, before)
        return before

    def commit(self, edit: commit.EditCommit) -> commit.CommitResult:
        """Commit the voxels of an edit: all of them, in one generation, once; or nothing.

        Safe to repeat with the same edit: what is in already is not committed again.

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
            return commit.commit_edit(self.store(), self.base_info().volume, edit)

    def restore(
        self,
        operation_id: int,
        *,
        owner: str,
        boxes: Sequence[Box] | None = None,
        generation: ocdbt.Version | None = None,
    ) -> bool:
        """Put back the voxels that an operation changed, as they were before it, and take its record out: one commit.

        What others have changed elsewhere in the meantime stays. The boxes stay listed as pending, because coarser mips
        may have been made since.

        Parameters
        ----------
        owner
            The owner that puts them back; must hold the operation's fence.
        boxes, generation
            What to put back, from when (or from which time), for an operation of other software, which leaves no
            record.

        Returns
        -------
        bool
            False if there is nothing to put back: the operation has no record, and no boxes are given.

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
        """What operations have left behind in the coarser mips, by operation id; CorruptionError names a bad entry."""
        return read_entries(self.store().kv)

    def lag(self) -> Lag:
        """How far the coarser mips are behind."""
        return lag_of(self.pending())

    def ask_for(self, boxes: Sequence[Box] | None = None) -> None:
        """List boxes as pending, whatever their coarser mips are: they will be made again. Default: everything."""
        store, bounds = self.store(), self.base_info().volume.bounds
        inside = [box.clip(bounds) for box in boxes or [bounds]]

        def write() -> None:
            with store.transaction(repeatable_read=True) as transaction:  # one key: nothing else of it can fail
                add_pending(store.kv.with_transaction(transaction), [box for box in inside if box.volume])

        retry_transport(write, what=f"asking for coarser mips of graph {self.graph_id}", attempts=8)


def is_current(volume: ts.TensorStore) -> bool:
    """Whether a volume that was opened earlier shows the database that is at its place now; one small read."""
    kvstore = volume.kvstore
    return kvstore is None or not remembers_another(kvstore)
