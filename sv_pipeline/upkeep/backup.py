"""Copies a graph, its table and its fork as of one operation, to another place while edits go on.

::

    PLACE/<graph id>/files/<name>                data files of the fork, which never change: each is copied once
    PLACE/<graph id>/<moment>/rows-<n>.zst       rows of the table
    PLACE/<graph id>/<moment>/manifest.ocdbt     manifest of the fork, which ends with the generation of the backup
    PLACE/<graph id>/<moment>/nodes              version nodes that this manifest refers to
    PLACE/<graph id>/<moment>/backup.json        `Catalogue`, written last: without it there is no backup

The base and the watershed are not part of a backup; the catalogue states to which base it belongs.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sv_pipeline.errors import ConfigError, ConflictError, DamagedError, NotFoundError
from sv_pipeline.failpoints import reach
from sv_pipeline.operations.pair import find_misfit
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.history import manifest_until, node_reader, read_history
from sv_pipeline.storage.reachable import Walk
from sv_pipeline.storage.stored_json import parse_stored
from sv_pipeline.storage.timed_files import list_files, storage_time
from sv_pipeline.table.interface import RowKeyRange, Table
from sv_pipeline.upkeep.cut import BackupCut, find_cut, times_of_others
from sv_pipeline.upkeep.row_files import row_files

__all__ = [
    "Backup",
    "Catalogue",
    "back_up",
    "backups_in",
    "base_uuid",
    "files_folder",
    "moment_folder",
    "read_catalogue",
    "require_own_manifest",
]

CATALOGUE, MANIFEST, NODES, FILES = "backup.json", "manifest.ocdbt", "nodes", "files"
FORMAT = 1
FILES_AT_ONCE = 16
EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Catalogue:
    """The description of one backup."""

    format: int
    graph_id: str
    moment: str
    """Name of the backup: the time of the storage when it was made."""
    config: dict[str, Any]
    """Configuration of the graph."""
    last_operation: int
    without: list[int]
    """Operations up to the last one that are not in the backup."""
    others: list[int]
    """Times in milliseconds of attempts at operations that are not in it; cells of these times are left out."""
    row_files: list[list[Any]]
    """Name, SHA-256 and number of rows of each file with rows."""
    generation: int | None
    """Generation of the fork; None if the graph has no voxels."""
    prefix: str | None
    """Prefix of the fork's data files."""
    base: str | None
    """UUID of the base's database."""
    files: list[list[Any]]
    """Name (without the prefix) and size of each data file."""

    @property
    def cut(self) -> BackupCut:
        """The operations that are in the backup."""
        return BackupCut(self.last_operation, frozenset(self.without), self.generation)


@dataclass(frozen=True)
class Backup:
    """What a backup has copied. Sizes are in bytes."""

    folder: str
    moment: str
    last_operation: int
    generation: int | None
    rows: int
    row_bytes: int
    files: int
    copied_files: int
    copied_bytes: int
    """Data files that no earlier backup had copied."""

    def __str__(self) -> str:
        fork = "" if self.generation is None else f" and generation {self.generation}"
        return (
            f"backup {self.moment} as of operation {self.last_operation}{fork}: {self.rows:,} rows in "
            f"{self.row_bytes / 1e6:.2f} MB, {self.copied_files} of {self.files} data files copied "
            f"({self.copied_bytes / 1e6:.2f} MB)"
        )


def graph_folder(place: str | Path, graph_id: str) -> str:
    """Return the folder of all backups of a graph."""
    return kv.join_url(kv.as_url(place), graph_id)


def moment_folder(place: str | Path, graph_id: str, moment: str) -> str:
    """Return the folder of one backup."""
    return kv.join_url(graph_folder(place, graph_id), moment)


def files_folder(place: str | Path, graph_id: str) -> str:
    """Return the folder of the data files that all backups of a graph share."""
    return kv.join_url(graph_folder(place, graph_id), FILES)


def back_up(dataset: Dataset, place: str | Path) -> Backup:
    """Back up a graph. Edits may go on; if the process is killed, the call is repeated.

    Raises
    ------
    ConflictError
        If an operation whose process has died is in the way, table and fork do not fit, or the graph's voxels are the
        base itself.
    NotFoundError
        If the graph has no table yet.
    ConfigError
        If the place is one of the folders that are removed with a graph or a base, or the age of files there cannot be
        read.
    """
    graph, fork = dataset.graph, dataset.fork
    _refuse_own_folders(dataset, place)
    require_own_manifest(fork)
    if (misfit := find_misfit(graph)) is not None:
        raise ConflictError(
            f"{misfit.message} Such a pair is not backed up.",
            remedy=f"'sv-pipeline reconcile {dataset.graph_id}' makes them fit.",
        )
    folder = graph_folder(place, dataset.graph_id)
    moment = _moment(storage_time(folder, "."))
    target = kv.join_url(folder, moment)
    cut = find_cut(graph)
    reach("backup cut")
    manifest = prefix = None
    if cut.generation is not None:
        # The manifest is read now, because the generation may be pruned while the rows are copied. Its files stay for
        # the grace period at least.
        prefix, manifest = fork.data_prefix, _manifest(fork, cut.generation, target)
    reach("backup manifest")
    rows, row_bytes, n_rows = _copy_rows(dataset.table, target)
    others = sorted(times_of_others(dataset.table, cut))
    reach("backup rows")
    copied = _copy_files(fork, manifest or [], files_folder(place, dataset.graph_id))
    reach("backup files")
    catalogue = Catalogue(
        format=FORMAT,
        graph_id=dataset.graph_id,
        moment=moment,
        # Receivers of events are not restored, and may have keys that the readers of the place must not see.
        config={**dataset.config.model_dump(mode="json", by_alias=True), "events": []},
        last_operation=cut.last,
        without=sorted(cut.without),
        others=others,
        row_files=rows,
        generation=cut.generation,
        prefix=prefix,
        base=None if manifest is None else base_uuid(fork),
        files=[[name, size] for name, size in manifest or []],
    )
    kv.write_bytes(target, CATALOGUE, json.dumps(asdict(catalogue), indent=1).encode())
    reach("backed up")
    done = Backup(
        folder=target,
        moment=moment,
        last_operation=cut.last,
        generation=cut.generation,
        rows=n_rows,
        row_bytes=row_bytes,
        files=len(manifest or []),
        copied_files=len(copied),
        copied_bytes=sum(copied.values()),
    )
    _logger.info("graph %s: %s", dataset.graph_id, done)
    return done


def backups_in(place: str | Path) -> dict[str, list[str]]:
    """Return the moments of all complete backups in a place, oldest first, by graph id."""
    found: dict[str, list[str]] = {}
    for key in kv.list_keys(kv.as_url(place)):
        parts = key.split("/")
        if len(parts) == 3 and parts[2] == CATALOGUE:
            found.setdefault(parts[0], []).append(parts[1])
    return {graph_id: sorted(moments) for graph_id, moments in found.items()}


def read_catalogue(place: str | Path, graph_id: str, moment: str) -> Catalogue:
    """Read the description of a backup; NotFoundError if it does not exist or was not completed."""
    folder = moment_folder(place, graph_id, moment)
    raw = kv.read_bytes(folder, CATALOGUE)
    if raw is None:
        raise NotFoundError(
            f"there is no complete backup {moment} of graph {graph_id!r} at {place}.",
            remedy=f"Complete ones: {', '.join(backups_in(place).get(graph_id, [])) or 'none'}.",
        )
    where = folder + CATALOGUE
    content = parse_stored(raw, dict[str, Any], where, remedy="Use another backup.")
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"{where} has format {content.get('format')!r}, not {FORMAT}: another version of sv_pipeline wrote it.",
            remedy="Restore it with that version, or use another backup.",
        )
    try:
        return Catalogue(**content)
    except TypeError as error:
        raise DamagedError(
            f"{where} is not the description of a backup.", remedy="Use another.", place=where
        ) from error


def require_own_manifest(fork: Fork) -> None:
    """Raise ConflictError if a fork does not have a single manifest of its own, which can be written anew."""
    if fork.is_in_place():
        why = "are the base itself"
    elif fork.exists() and fork.base.info().form.manifest_kind == "numbered":
        why = "have numbered manifests"
    else:
        return
    raise ConflictError(
        f"the voxels of graph {fork.graph_id!r} {why}, which is not supported here.",
        remedy="Copy the folder of the watershed and the table while nobody edits.",
    )


def _refuse_own_folders(dataset: Dataset, place: str | Path) -> None:
    """Raise ConfigError if backups would lie in a folder that is removed, or taken for something else, later."""
    target = graph_folder(place, dataset.graph_id)
    own = [ocdbt.ocdbt_folder(dataset.watershed_url), kv.join_url(dataset.home, "graphs")]
    if (file := dataset.table.file) is not None:
        own.append(kv.as_url(file.parent))
    for folder in own:
        if target.startswith(folder):
            raise ConfigError(
                f"{place} cannot hold backups of graph {dataset.graph_id!r}, because {folder} belongs to the graphs "
                "themselves.",
                remedy="Name a folder outside.",
            )


def base_uuid(fork: Fork) -> str:
    """Return the UUID of the database of a fork's base."""
    return str(read_manifest(ocdbt.OcdbtStore(fork.base.info().spec()).base)["config"]["uuid"])


def _moment(nanoseconds: int) -> str:
    at = datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    # Fractions of a second, because the newest backup is the one whose name is last.
    return at.strftime("%Y%m%dT%H%M%S.%fZ-") + secrets.token_hex(2)


def _manifest(fork: Fork, generation: int, target: str) -> list[tuple[str, int]]:
    """Write the manifest that ends with a generation; return the names and sizes of the files it refers to."""
    store, prefix = fork.store(), fork.data_prefix
    manifest, read = read_manifest(store.base), node_reader(store.base)
    file = f"{prefix}{secrets.token_hex(16)}"
    new = manifest_until(manifest, generation, read, file)
    walk = Walk(store.base, (prefix,))
    roots = [one.root for one in read_history(store.base, manifest) if one.number <= generation]
    walk.add_roots(roots)
    kv.write_many(target, {MANIFEST: new.manifest, NODES: json.dumps(file).encode() + b"\n" + new.nodes})
    sizes = {one.name: one.size for one in list_files(fork.folder, prefix)}
    missing = walk.found.files - sizes.keys()
    if missing:
        raise DamagedError(
            f"the file {sorted(missing)[0]} of the fork of graph {fork.graph_id!r} is missing.",
            remedy=f"'sv-pipeline verify {fork.graph_id}' says what else is damaged.",
            place=fork.folder + sorted(missing)[0],
        )
    return sorted((name.removeprefix(prefix), sizes[name]) for name in walk.found.files)


def _copy_rows(table: Table, target: str) -> tuple[list[list[Any]], int, int]:
    names, total, count = [], 0, 0
    for number, file in enumerate(row_files(table.scan([EVERYTHING]))):
        name = f"rows-{number:06d}.zst"
        kv.write_bytes(target, name, file.content)
        names.append([name, file.digest, file.rows])
        total, count = total + len(file.content), count + file.rows
    return names, total, count


def _copy_files(fork: Fork, wanted: list[tuple[str, int]], target: str) -> dict[str, int]:
    """Copy data files that are not there yet; return the sizes of those that were copied."""
    there = {one.name: one.size for one in list_files(target)}
    left = [(name, size) for name, size in wanted if there.get(name) != size]
    for some in _groups(left):
        prefix = fork.data_prefix
        contents = kv.read_many(fork.folder, [prefix + name for name, _ in some])
        for (name, _), content in zip(some, contents, strict=True):
            if content is None:
                raise ConflictError(
                    f"the file {prefix}{name} was deleted while it was to be copied: the history of graph "
                    f"{fork.graph_id!r} was shortened, and the backup takes longer than its grace period.",
                    remedy="Use a longer grace period.",
                    repeat="Then run the backup again.",
                )
        kv.write_many(target, {name: content or b"" for (name, _), content in zip(some, contents, strict=True)})
    return dict(left)


def _groups(files: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    for first in range(0, len(files), FILES_AT_ONCE):
        yield files[first : first + FILES_AT_ONCE]
