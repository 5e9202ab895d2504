"""Whether a table and a fork have the same history: what each states about itself, and how they disagree.

Both are restored from backups, and nothing prevents a person from restoring them from different days. Therefore each of
them names the graph and the operation whose voxels were committed last:

| where | what | written |
| --- | --- | --- |
| table, row ``sv_pipeline:pair`` | ``1:graph``: identity of the graph | before the first voxels are committed |
| | ``1:committed``: operation and its identity; the cell's time is the generation | with the rows of the edit |
| table, row ``sv_pipeline:open:%020d`` | ``1:identity`` of the operation | with its first row |
| table, row ``sv_pipeline:op:%020d`` | the same | before the voxels |
| fork, ``_sv_pipeline/newest`` | identity of the graph, operation and its identity | in the commit of the voxels |
| fork, ``_sv_pipeline/ops/<op>`` | what the operation changed, and its identity | likewise |

The table never names an operation whose voxels are not in the fork yet, and the fork never names an operation that has
no row yet. If nothing is named (graphs of older versions, edits by other software), nothing is known or refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from sv_pipeline.errors import CorruptionError, NotFoundError
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import FIXED_TIME, open_key
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.writing import IDENTITY, identity_in, identity_keys, new_identity
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.making import read_manifest
from sv_pipeline.segmentation.fork.records import NEWEST, Newest, OperationRecord, read_value, record_in
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.manifest import decode_manifest
from sv_pipeline.table import codecs, columns, keys
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import CellMatch, ColumnKey, RowMutation, RowView, Table

__all__ = [
    "Committed",
    "Compared",
    "HasBoth",
    "Misfit",
    "Older",
    "compare",
    "ensure_identity",
    "find_misfit",
    "fitting",
    "misfit_first",
    "note_of_commit",
    "restore_advice",
    "wrote",
]

_ANOTHER = "operation {0} of the table is not the operation {0} whose voxels the fork has"
PAIR_ROW = b"sv_pipeline:pair"
MAX_FORKS = 16
"""Number of forks of which this process remembers what they name."""
_looked: dict[tuple[str, str], tuple[bytes, Newest | None]] = {}
"""The manifest of each fork as this process saw it last, and what the fork named then."""
GRAPH: Column[str] = Column(ColumnKey("1", b"graph"), codecs.TextCodec())
COMMITTED: Column[Any] = Column(ColumnKey("1", b"committed"), codecs.JsonCodec())


class Older(StrEnum):
    """Which of the two was restored from the earlier day."""

    TABLE = "table"
    FORK = "fork"
    NEITHER = "neither"
    """Both have edits that the other lacks, or they belong to two graphs."""


@dataclass(frozen=True)
class Misfit:
    """The reason for which a table and a fork do not belong together."""

    older: Older
    message: str
    remedy: str


@dataclass(frozen=True)
class Compared:
    """Result of a comparison."""

    identity: str | None
    """Identity of the graph according to its table; None if it has none yet."""
    misfit: Misfit | None


class HasBoth(Protocol):
    """A graph, as far as the comparison needs it."""

    @property
    def table(self) -> Table:
        """Table of the graph."""
        ...

    @property
    def fork(self) -> Fork:
        """Fork of the graph."""
        ...


class Committed(NamedTuple):
    """An operation whose voxels are committed."""

    operation_id: int
    identity: str


def ensure_identity(table: Table) -> str:
    """Return the identity of the graph; it is created if there is none."""
    found = GRAPH.newest(_pair_row(table))
    if found is None:
        table.check_and_mutate(PAIR_ROW, [CellMatch(GRAPH.key)], if_unmatched=[GRAPH.set(new_identity(), FIXED_TIME)])
        found = GRAPH.newest(_pair_row(table))
        assert found is not None, "it has just been written"
    return found


def note_of_commit(operation_id: int, identity: str, generation: int) -> RowMutation:
    """Return the note in the table about which operation made a generation; the latest generation is kept."""
    committed = {"operation_id": operation_id, "identity": identity}
    return RowMutation(PAIR_ROW, [COMMITTED.set(committed, generation)])


def find_misfit(graph: HasBoth) -> Misfit | None:
    """Return how a table and a fork disagree; None if they agree as far as is known."""
    return compare(graph).misfit


def fitting(graph: HasBoth) -> str | None:
    """Return the identity of the graph, if it has one; raise EditRefused if table and fork do not belong together."""
    found = compare(graph)
    if found.misfit is not None:
        raise EditRefused(Reason.RESTORED_APART, found.misfit.message, remedy=found.misfit.remedy)
    return found.identity


@contextmanager
def misfit_first(graph: HasBoth) -> Iterator[None]:
    """If the block raises NotFoundError or EditRefused, report first if table and fork do not belong together."""
    try:
        yield
    except (EditRefused, NotFoundError) as error:
        if getattr(error, "reason", None) is not Reason.RESTORED_APART:
            fitting(graph)
        raise


def compare(graph: HasBoth) -> Compared:
    """Compare what the table and the fork state about themselves."""
    exists, newest = _newest_in_fork(graph)
    row = _pair_row(graph.table)
    committed = _committed_in(row)
    if newest is None and committed is None:
        return Compared(GRAPH.newest(row), None)
    if newest is not None and committed == Committed(newest.operation_id, newest.identity):
        return Compared(GRAPH.newest(row), _of_two_graphs(graph, row, newest))
    wrong = None if newest is None else _of_two_graphs(graph, row, newest)
    with _readable(graph):
        store = graph.fork.store() if exists else None
    if wrong is None and newest is not None and store is not None:
        wrong = _table_lacks(graph, newest, store)
    if wrong is None and committed is not None:
        wrong = _fork_lacks(graph, committed, store)
    return Compared(GRAPH.newest(row), wrong)


def restore_advice(graph: HasBoth, older: Older) -> str:
    """Return the remedy for a table and a fork that do not belong together."""
    folder = graph.fork.folder
    if older is Older.NEITHER:
        return f"Restore both from backups of the same day: the table, and the folder {folder}."
    other = "the table" if older is Older.TABLE else f"the folder {folder}"
    newer = f"the folder {folder}" if older is Older.TABLE else "the table"
    return f"Restore {other} from a backup of the day of the other one, or {newer} from the earlier day."


def wrote(status: int | None) -> bool:
    """Whether an operation of this status can have changed voxels; refused and missing ones cannot."""
    return status in (int(OperationStatus.SUCCESS), int(OperationStatus.WRITE_STARTED))


# -- what is wrong ----------------------------------------------------------------------------------------------------


def _of_two_graphs(graph: HasBoth, row: RowView, newest: Newest) -> Misfit | None:
    identity = GRAPH.newest(row)
    if identity is None:
        return _misfit(
            graph,
            Older.TABLE,
            f"the fork holds voxels of operation {newest.operation_id}, and the table is from before that",
        )
    if identity == newest.graph:
        return None
    return _misfit(
        graph,
        Older.NEITHER,
        f"the table belongs to the graph with identity {identity}, the fork to the one with identity {newest.graph}",
    )


def _table_lacks(graph: HasBoth, newest: Newest, store: ocdbt.OcdbtStore) -> Misfit | None:
    """Return a misfit unless the table knows the operation that the fork names."""
    number = newest.operation_id
    row_keys = [*identity_keys(number), keys.node_key(number)]
    rows = graph.table.read_rows(row_keys, [IDENTITY.key, columns.OPERATION_STATUS.key], newest_only=True)
    known = identity_in(rows, number)
    if known == newest.identity:
        return None
    status = columns.OPERATION_STATUS.newest(rows.get(row_keys[-1]))
    record = record_in(store.kv, number)
    if status is not None and (record is None or record.identity in (None, known)):
        return None  # it was rolled back, or replayed by an older version
    if not wrote(status):
        return _misfit(
            graph, Older.TABLE, f"the fork holds voxels of operation {number}, which the table does not know"
        )
    return _misfit(graph, Older.NEITHER, _ANOTHER.format(number))


def _fork_lacks(graph: HasBoth, committed: Committed, store: ocdbt.OcdbtStore | None) -> Misfit | None:
    """Return a misfit unless the voxels of the operation that the table names are in the fork, or were rolled back."""
    number = committed.operation_id
    record = _record(store, number)
    if record is None and _is_done(graph.table, number):
        record = _record(store, number)
        if record is None:
            said = "has no voxels of it" if store is not None else "does not exist"
            return _misfit(
                graph, Older.FORK, f"the table says that operation {number} changed voxels, but the fork {said}"
            )
    if record is not None and record.identity not in (None, committed.identity):
        return _misfit(graph, Older.NEITHER, _ANOTHER.format(number))
    return None


def _misfit(graph: HasBoth, older: Older, why: str) -> Misfit:
    verdict = (
        f"the {older} of graph {graph.fork.graph_id!r} is older than its {'fork' if older is Older.TABLE else 'table'}"
        if older is not Older.NEITHER
        else f"table and fork of graph {graph.fork.graph_id!r} do not belong together"
    )
    return Misfit(older, f"{verdict}: {why}.", restore_advice(graph, older))


# -- reading ----------------------------------------------------------------------------------------------------------


def _pair_row(table: Table) -> RowView:
    return table.read_rows([PAIR_ROW], newest_only=True).get(PAIR_ROW, {})


def _committed_in(row: RowView) -> Committed | None:
    value = COMMITTED.newest(row)
    return None if value is None else Committed(int(value["operation_id"]), str(value["identity"]))


def _newest_in_fork(graph: HasBoth) -> tuple[bool, Newest | None]:
    """Return whether the graph has a fork, and which operation that names.

    A manifest determines everything in its fork, unless it is numbered and stored elsewhere. So the fork is opened only
    if the manifest has changed since this process looked last, that is, if voxels were committed.
    """
    place = graph.fork.watershed_url, graph.fork.graph_id
    manifest = read_manifest(*place)
    if manifest is None and not graph.fork.is_in_place():
        return False, None
    looked = _looked.get(place)
    if looked is not None and looked[0] == manifest:
        return True, looked[1]
    with _readable(graph):
        value = read_value(graph.fork.store().kv, NEWEST)
        lasts = manifest is not None and decode_manifest(manifest) is not None and manifest == read_manifest(*place)
    newest = None if value is None else Newest.decode(value)
    if manifest is not None and lasts:
        _looked[place] = manifest, newest
        while len(_looked) > MAX_FORKS:
            _looked.pop(next(iter(_looked)), None)
    return True, newest


@contextmanager
def _readable(graph: HasBoth) -> Iterator[None]:
    """Name the fork in the error if TensorStore cannot read it."""
    try:
        yield
    except ValueError as error:
        reason = str(error).split(" [tensorstore_spec=", 1)[0]
        raise CorruptionError(
            f"the fork of graph {graph.fork.graph_id!r} cannot be read: {reason}.",
            remedy="Restore the file that the text names; `sv-pipeline verify` lists what is damaged.",
        ) from error


def _record(store: ocdbt.OcdbtStore | None, operation_id: int) -> OperationRecord | None:
    return None if store is None else record_in(store.kv, operation_id)


def _is_done(table: Table, operation_id: int) -> bool:
    """Whether an operation succeeded and no process is working on it."""
    row_keys = [open_key(operation_id), keys.node_key(operation_id)]
    rows = table.read_rows(row_keys, newest_only=True)
    status = columns.OPERATION_STATUS.newest(rows.get(row_keys[1]))
    return row_keys[0] not in rows and status == int(OperationStatus.SUCCESS)
