"""Makes a graph from a backup: another graph, with an id and an identity of its own.

| # | step | state after a kill |
| --- | --- | --- |
| 1 | create the table, with a row that names the backup | a table that only this restore uses |
| 2 | copy the rows that are part of the backup | the same |
| 3 | copy the data files, then the manifest | the same, and a fork |
| 4 | commit the new identity to the fork; write identity and meta to the table | the same |
| 5 | register the graph; delete the row that names the backup | the graph, perhaps with that row |

The next call with the same backup and graph id continues.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sv_pipeline.config import DatasetConfig, parse_config, validate_graph_id
from sv_pipeline.errors import ConflictError, CorruptionError, NotFoundError
from sv_pipeline.failpoints import reach
from sv_pipeline.operations.pair import COMMITTED, GRAPH, PAIR_ROW, ensure_identity
from sv_pipeline.operations.writing import read_identity
from sv_pipeline.registry import Dataset, Registry, absolute
from sv_pipeline.segmentation.fork.making import adopt_files
from sv_pipeline.segmentation.fork.records import NEWEST, Newest, read_value
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.timed_files import list_files
from sv_pipeline.table import meta
from sv_pipeline.table.interface import RowMutation, RowView, SetCell
from sv_pipeline.table.restoring import begin_restoring, being_restored_from, end_restoring
from sv_pipeline.upkeep import backup
from sv_pipeline.upkeep.cut import TimesCollideError, kept_rows
from sv_pipeline.upkeep.row_files import rows_in

__all__ = ["restore"]

ROWS_AT_ONCE = 500

_logger = logging.getLogger(__name__)


def restore(
    registry: Registry,
    place: str | Path,
    as_graph: str,
    *,
    graph_id: str | None = None,
    moment: str | None = None,
    changes: dict[str, Any] | None = None,
) -> Dataset:
    """Make a graph from a backup, and register it. If the process is killed, the call is repeated.

    Parameters
    ----------
    registry
        The home folder in which the graph is registered.
    place
        Folder of the backups.
    as_graph
        Id of the new graph.
    graph_id
        Graph that was backed up; only needed if the place has backups of several.
    moment
        Name of the backup; default: the newest one.
    changes
        Sections of the configuration to replace, such as ``backend_client``.

    Raises
    ------
    NotFoundError
        If there is no such backup, or no base.
    ConflictError
        If the id is in use, or the base is another one than that of the backup.
    CorruptionError
        If a file of the backup is damaged.
    """
    validate_graph_id(as_graph)
    catalogue = _chosen(place, graph_id, moment)
    config = absolute(_configuration(catalogue, as_graph, changes or {}))
    registry.check(config)
    dataset, source = Dataset(config, registry.home), f"{catalogue.graph_id}/{catalogue.moment}"
    if as_graph in registry.graph_ids():
        if dataset.existing_table is not None and being_restored_from(dataset.table) == source:
            end_restoring(dataset.table)  # the earlier call was killed between the last two steps
            return dataset
        raise ConflictError(f"graph {as_graph!r} exists already.", remedy="Choose another id (--as).")
    if catalogue.generation is not None and backup.base_uuid(dataset.fork) != catalogue.base:
        raise ConflictError(
            f"the base of {dataset.watershed_url} is not the one of the backup.",
            remedy="Restore the watershed's folder ocdbt/base from its own backup first.",
        )
    _claim(dataset, source)
    reach("restore claimed")
    try:
        _write_rows(dataset, kept_rows(_rows(place, catalogue), catalogue.cut, {*catalogue.others}))
    except TimesCollideError as error:
        raise CorruptionError(
            f"in the backup {catalogue.moment}, operation {error} has the same time as one that is not part of it.",
            remedy="Use another backup.",
        ) from error
    reach("restore rows")
    if catalogue.generation is not None:
        _make_fork(dataset, place, catalogue)
    reach("restore fork")
    _give_identity(dataset)
    meta.write_meta(dataset.table, _renamed(meta.read_meta(dataset.table), config), overwrite=True)
    reach("restore identity")
    dataset = registry.register(config)
    reach("restore registered")
    _logger.info("graph %s restored from backup %s of %s", as_graph, catalogue.moment, catalogue.graph_id)
    end_restoring(dataset.table)
    return dataset


def _chosen(place: str | Path, graph_id: str | None, moment: str | None) -> backup.Catalogue:
    there = backup.backups_in(place)
    if graph_id is None and len(there) > 1:
        raise ConflictError(f"{place} has backups of {', '.join(sorted(there))}.", remedy="Name one (--graph).")
    wanted = graph_id or next(iter(there), None)
    if wanted is None or wanted not in there:
        of = f" of graph {graph_id!r}" if there else ""
        names = f" It has backups of {', '.join(sorted(there))}." if there else ""
        raise NotFoundError(f"{place} has no complete backup{of}.{names}", remedy="Check the place.")
    return backup.read_catalogue(place, wanted, moment or there[wanted][-1])


def _configuration(catalogue: backup.Catalogue, as_graph: str, changes: dict[str, Any]) -> DatasetConfig:
    raw = {**catalogue.config, **changes, "graph_id": as_graph}
    raw["events"] = []  # receivers must not get the events of two graphs under one name
    if catalogue.prefix not in (None, ocdbt.data_prefix(as_graph)):
        # Other software derives the prefix from the id, and would find no voxels.
        raw["ocdbt_config"] = {**raw["ocdbt_config"], "enabled": False}
    return parse_config(raw, stored=True)


def _renamed(stored: meta.TableMeta, config: DatasetConfig) -> meta.TableMeta:
    """Return the meta of the original, with what other software has added, under the name of the restored graph."""
    new = meta.from_config(config)
    named = stored.graph_config._replace(ID=new.graph_config.ID, ID_PREFIX=new.graph_config.ID_PREFIX)
    return meta.TableMeta(named, new.data_source, {**stored.custom_data, **new.custom_data})


def _claim(dataset: Dataset, source: str) -> None:
    """Create the table for this restore, or find the one that an earlier call has created."""
    table = dataset.table
    if not table.exists():
        if dataset.fork.exists():
            raise ConflictError(
                f"graph {dataset.graph_id!r} has a fork at {dataset.fork.folder}.", remedy="Choose another id (--as)."
            )
        table.create()
        begin_restoring(table, source)
    found = being_restored_from(dataset.table)
    if found is None and not any(True for _ in table.scan([backup.EVERYTHING])):
        begin_restoring(table, source)  # killed between the two steps above
    elif found != source:
        of, moment = ("", "") if found is None else found.split("/")
        raise ConflictError(
            f"there is a table {table.name!r}, " + (f"being restored from {found}." if found else "of a graph."),
            remedy="Choose another id (--as)."
            + (f" To complete that restore, name its backup (--graph {of} --moment {moment})." if found else ""),
        )


def _rows(place: str | Path, catalogue: backup.Catalogue) -> Iterator[tuple[bytes, RowView]]:
    folder = backup.moment_folder(place, catalogue.graph_id, catalogue.moment)
    for name, digest, _ in catalogue.row_files:
        content = kv.read_bytes(folder, name)
        if content is None:
            raise CorruptionError(f"{folder}{name} is missing.", remedy="Use another backup.")
        yield from rows_in(content, digest, folder + name)


def _write_rows(dataset: Dataset, rows: Iterator[tuple[bytes, RowView]]) -> None:
    batch: list[RowMutation] = []
    for key, row in rows:
        cells = [SetCell(column, cell.value, cell.timestamp) for column, found in row.items() for cell in found]
        batch.append(RowMutation(key, cells))
        if len(batch) == ROWS_AT_ONCE:
            dataset.table.mutate(batch)
            reach("restoring rows")
            batch = []
    dataset.table.mutate(batch)


def _make_fork(dataset: Dataset, place: str | Path, catalogue: backup.Catalogue) -> None:
    assert catalogue.prefix is not None
    source = backup.files_folder(place, catalogue.graph_id)
    moment = backup.moment_folder(place, catalogue.graph_id, catalogue.moment)
    target = ocdbt.fork_folder(dataset.watershed_url, dataset.graph_id)
    manifest, nodes = kv.read_many(moment, [backup.MANIFEST, backup.NODES])
    if manifest is None or nodes is None:
        raise CorruptionError(f"{moment} has lost its manifest.", remedy="Use another backup.")
    if dataset.fork.exists() and not _is_restored(dataset, manifest):
        raise ConflictError(
            f"graph {dataset.graph_id!r} has a fork at {target}, which was made while it was being restored.",
            remedy="Choose another id (--as).",
        )
    there = {one.name: one.size for one in list_files(target, catalogue.prefix)}
    sizes = {str(name): int(size) for name, size in catalogue.files}
    left = [name for name, size in sizes.items() if there.get(catalogue.prefix + name) != size]
    for first in range(0, len(left), backup.FILES_AT_ONCE):
        names = left[first : first + backup.FILES_AT_ONCE]
        contents = kv.read_many(source, names)
        for name, content in zip(names, contents, strict=True):
            if content is None or len(content) != sizes[name]:
                what = "is missing" if content is None else f"has {len(content)} bytes instead of {sizes[name]}"
                remedy = (
                    f"Make another backup of graph {catalogue.graph_id!r}, if it is left, which copies the file again."
                )
                raise CorruptionError(f"{source}{name} {what}.", remedy=remedy)
        kv.write_many(target, {catalogue.prefix + n: c or b"" for n, c in zip(names, contents, strict=True)})
        reach("restoring files")
    file, _, content = nodes.partition(b"\n")
    kv.write_bytes(target, json.loads(file), content)
    if not dataset.fork.exists():
        adopt_files(dataset.base.info(), dataset.graph_id, catalogue.prefix, manifest)


def _is_restored(dataset: Dataset, manifest: bytes) -> bool:
    """Return whether a fork is what an earlier call has made, before or after it got the identity of the graph."""
    if kv.read_bytes(dataset.fork.folder, ocdbt.SINGLE_MANIFEST) == manifest:
        return True
    value = read_value(dataset.fork.store().kv, NEWEST)
    return value is not None and Newest.decode(value).graph == ensure_identity(dataset.table)


def _give_identity(dataset: Dataset) -> None:
    """Write a new identity of the graph to its table and its fork."""
    identity = ensure_identity(dataset.table)
    if not dataset.fork.exists():
        return
    store = dataset.fork.store()
    value = read_value(store.kv, NEWEST)
    if value is None:
        return  # no voxels were edited
    newest = Newest.decode(value)
    if newest.graph != identity:
        with store.transaction() as transaction:
            renamed = Newest(identity, newest.operation_id, newest.identity)
            store.kv.with_transaction(transaction).write(NEWEST, renamed.encode()).result()
    known = read_identity(dataset.table, newest.operation_id)
    if known == newest.identity:
        committed = {"operation_id": newest.operation_id, "identity": newest.identity}
        dataset.table.mutate([RowMutation(PAIR_ROW, [COMMITTED.set(committed, dataset.fork.generation())])])
    assert GRAPH.newest(dataset.table.read_rows([PAIR_ROW], newest_only=True).get(PAIR_ROW)) == identity
