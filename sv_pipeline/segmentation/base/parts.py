"""Owns the parts of a populate: the private stores of tasks, and their merge into the base by reference.

Each attempt at a task writes to a store of its own, ``base/parts/<task>/<attempt>/``, which no other process touches
while the task may be running. The done-marker names the attempt that won. So two workers on one task cannot mix, and a
killed worker leaves nothing that counts. The merge copies the keys of the winning parts into the base; the values stay
where they are, and the base refers to them. The commit that completes a task also writes a key for it, so a merge can
be repeated and done in steps. A merge of very many keys also records its progress, and is resumed from there.

If the base refers to chunks of the watershed, so do the parts: such a part starts as a tree of references, which is
encoded here (`storage.ocdbt_tree`), and shares the base's key space, with a manifest of its own.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import tensorstore as ts

from sv_pipeline.errors import CorruptionError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.segmentation.base.key_ranges import KeyRange, key_ranges, tasks_of_range
from sv_pipeline.segmentation.base.markers import task_name
from sv_pipeline.segmentation.base.source_record import SOURCE_RECORD
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.context import give_back_memory, uncached_context
from sv_pipeline.storage.ocdbt_tree import References, encode_tree, tree_manifest
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.stored_json import parse_stored

__all__ = [
    "KEYS_PER_COMMIT",
    "MERGED_KEYS",
    "begin_referring",
    "clean_task",
    "delete_attempt",
    "is_kept",
    "merge_in_ranges",
    "merge_parts",
    "merged_tasks",
    "remove_stale_parts",
]

Triple = tuple[int, int, int]

MERGED_KEYS = ocdbt.OWN_KEYS + "populate/"
"""Prefix of the keys of merged tasks: one for each, written in the commit that merges its voxels."""
MERGED_RANGES = ocdbt.OWN_KEYS + "populate_ranges"
"""Key with the progress of a merge in several commits: the number of merged ranges of keys, and of all ranges."""
KEYS_PER_COMMIT = 100_000
"""Largest number of keys in one commit, about."""
BYTES_PER_KEY = 650
"""Memory that a commit needs for each key, in bytes, besides the values that are stored in the tree."""
COPIES_OF_VALUES = 2.5
"""Memory that a commit needs for each value that is stored in the tree, in multiples of its size, about."""
COMMIT_MEMORY = KEYS_PER_COMMIT * BYTES_PER_KEY
"""Memory of one commit in bytes, about. Commits of few keys grow until they need it."""
TREE = "tree"
_INFO = "info"

_logger = logging.getLogger(__name__)


def merged_tasks(base: BaseInfo) -> set[str]:
    """Read from the base the names of the tasks whose voxels are in it."""
    store = ocdbt.OcdbtStore(base.spec())

    def read() -> set[str]:
        return {key.decode() for key in (store.kv / MERGED_KEYS).list().result()}

    return retry_transport(read, what=f"reading the merged tasks of {base.watershed_url}")


def merge_parts(base: BaseInfo, attempts: dict[Triple, str]) -> int:
    """Merge parts into the base in one atomic commit, except for those merged before.

    Parameters
    ----------
    base
        The base.
    attempts
        The winning attempt of each task to merge.

    Returns
    -------
    Number of parts that this call merged.
    """
    merge = _Merge(base, attempts)
    if merge.todo:
        retry_transport(merge.at_once, what=merge.what)
    return len(merge.todo)


def merge_in_ranges(
    base: BaseInfo,
    attempts: dict[Triple, str],
    grid: ChunkGrid,
    layer: int,
    keys_per_commit: int | None = None,
) -> int:
    """Merge the parts of all tasks into the base, in atomic commits of neighbouring keys that need a bounded memory.

    Small values lie in the tree itself, so a commit of the same number of keys may need ten times the memory, if all
    values are small. The first commit therefore has as few keys as are safe in any case; the next ones have more and
    more, until they need `COMMIT_MEMORY`. A merge that was killed is resumed after its last commit.

    Parameters
    ----------
    base
        The base.
    attempts
        The winning attempt of each task.
    grid, layer
        The division into tasks.
    keys_per_commit
        Largest number of keys in each commit, about; default: as described above.

    Returns
    -------
    Number of parts that this call merged.
    """
    inline = 0 if base.refers else base.form.max_inline_value_bytes
    safe = int(COMMIT_MEMORY / (BYTES_PER_KEY + COPIES_OF_VALUES * inline))
    unit, most = (keys_per_commit, 1) if keys_per_commit else (safe, max(1, KEYS_PER_COMMIT // safe))
    n_keys = sum(len(ChunkNames(scale)) for scale in base.volume.scales)
    if n_keys <= unit:
        return merge_parts(base, attempts)
    merge = _Merge(base, attempts)
    ranges = list(key_ranges(base.volume, unit))
    at_once = 1
    while merge.todo and (number := merge.ranges_done(len(ranges))) < len(ranges):
        some = ranges[number : number + at_once]
        copies = [(keys, merge.tasks_at(*tasks_of_range(keys, base.volume, grid, layer))) for keys in some]
        what = f"{merge.what} (keys {number + 1} to {number + len(some)} of {len(ranges)})"
        before = _resident_bytes()
        retry_transport(lambda n=number, c=copies: merge.some_ranges(n, len(ranges), c), what=what)  # type: ignore[misc]
        at_once = _next_size(at_once, _resident_bytes() - before, most)
        give_back_memory()
    return len(merge.todo)


def _next_size(ranges: int, used: int, most: int) -> int:
    """Return the number of ranges of the next commit, after one that has left so many bytes in use."""
    if used > COMMIT_MEMORY:
        return max(1, ranges // 2)
    return min(most, 2 * ranges) if used < COMMIT_MEMORY / 3 else ranges


def _resident_bytes() -> int:
    """Return the memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class _Merge:
    """One merge: the parts that the base does not have yet, and the open stores."""

    def __init__(self, base: BaseInfo, attempts: dict[Triple, str]) -> None:
        merged = merged_tasks(base) if attempts else set()
        self.todo = {c: attempt for c, attempt in sorted(attempts.items()) if task_name(c) not in merged}
        self.what = f"merging {len(self.todo)} parts into the base of {base.watershed_url}"
        self._base = base
        self._parts: dict[Triple, ts.KvStore] = {}
        self._columns: dict[int, list[Triple]] = {}
        for task in self.todo:
            self._columns.setdefault(task[0], []).append(task)
        if self.todo:
            _require_parts(base, self.todo)
        self._store = ocdbt.OcdbtStore(base.spec())

    def at_once(self) -> None:
        """Merge all parts in one commit."""
        with self._store.transaction() as transaction:
            target = self._store.kv.with_transaction(transaction)
            # Copy all keys except the volume's info, which the base has already.
            ranges = [ts.KvStore.KeyRange("", _INFO), ts.KvStore.KeyRange(_INFO + "\0", "")]
            copies = [self._copy(task, target, keys) for task in self.todo for keys in ranges]
            for future in [*copies, *self._marks(target)]:
                future.result()

    def ranges_done(self, n_ranges: int) -> int:
        """Return how many ranges of keys are merged already, of a division into ``n_ranges``."""
        found = retry_transport(lambda: self._store.kv.read(MERGED_RANGES).result(), what=self.what)
        done = parse_stored(bytes(found.value), dict[str, int], MERGED_RANGES) if found.state == "value" else {}
        return done["done"] if done.get("of") == n_ranges else 0

    def tasks_at(self, xs: set[int], ys: set[int]) -> list[Triple]:
        """Return the tasks to merge at some positions along x and y."""
        return [task for x in sorted(xs) for task in self._columns.get(x, ()) if task[1] in ys]

    def some_ranges(self, number: int, n_ranges: int, copies: list[tuple[KeyRange, list[Triple]]]) -> None:
        """Merge neighbouring ranges of keys, the first of which has this number, each from the parts of some tasks.

        The last range of all marks all tasks as merged.
        """
        # Each commit has a context of its own, so that memory does not grow with the number of commits.
        self._parts, self._store = {}, ocdbt.OcdbtStore(self._base.spec(), context=uncached_context())
        done = number + len(copies)
        with self._store.transaction() as transaction:
            target = self._store.kv.with_transaction(transaction)
            futures = []
            for keys, tasks in copies:
                copied = ts.KvStore.KeyRange(keys.first_key, keys.end)
                futures += [self._copy(task, target, copied) for task in tasks]
            futures.append(target.write(MERGED_RANGES, json.dumps({"done": done, "of": n_ranges}).encode()))
            if done == n_ranges:
                futures += self._marks(target)
            for future in futures:
                future.result()

    def _copy(self, task: Triple, target: ts.KvStore, keys: ts.KvStore.KeyRange) -> ts.Future[Any]:
        if task not in self._parts:
            spec = self._base.part_spec(task_name(task), self.todo[task])
            self._parts[task] = ocdbt.OcdbtStore(spec, context=self._store.context).kv
        return self._parts[task].experimental_copy_range_to(target, source_range=keys)

    def _marks(self, target: ts.KvStore) -> list[ts.Future[Any]]:
        return [
            target.write(MERGED_KEYS + task_name(task), json.dumps({"attempt": attempt}).encode())
            for task, attempt in self.todo.items()
        ]


def _require_parts(base: BaseInfo, attempts: dict[Triple, str]) -> None:
    """Raise CorruptionError if a part is missing, because TensorStore would treat it as empty."""
    folder = kv.join_url(ocdbt.base_folder(base.watershed_url), "parts")
    keys = [f"{task_name(c)}/{attempt}/{ocdbt.SINGLE_MANIFEST}" for c, attempt in attempts.items()]
    found = kv.read_many(folder, keys)
    lost = [task_name(c) for c, manifest in zip(attempts, found, strict=True) if manifest is None]
    if lost and set(lost) - merged_tasks(base):  # another process may have merged parts meanwhile and removed them
        raise CorruptionError(
            f"populate tasks {', '.join(lost[:10])} of {base.watershed_url} are marked done, but their parts are gone.",
            remedy="Delete their markers below ocdbt/.populated/tasks/ and run these tasks again.",
        )


def begin_referring(base: BaseInfo, coordinate: Triple, attempt: str, references: References) -> None:
    """Make a part that holds only these references; more may be written to it later."""
    name = task_name(coordinate)
    folder = ocdbt.part_folder(base.watershed_url, name, attempt)
    file = f"parts/{name}/{attempt}/{TREE}"
    form = base.form
    tree = encode_tree(
        references, file, max_node_bytes=form.max_decoded_node_bytes, compression_level=form.compression_level
    )
    kv.write_bytes(folder, TREE, tree.data)
    kv.write_bytes(folder, ocdbt.SINGLE_MANIFEST, tree_manifest(tree, file, form.config_json()))


def delete_attempt(watershed_url: str | Path, coordinate: Triple, attempt: str) -> None:
    """Remove a part that did not win, through the driver of its folder."""
    kv.delete_prefix(ocdbt.part_folder(watershed_url, task_name(coordinate), attempt))


def clean_task(watershed_url: str | Path, coordinate: Triple, winner: str) -> None:
    """Remove the attempts at a done task that did not win, whether their workers were killed or are still running."""
    folder = kv.join_url(ocdbt.base_folder(watershed_url), "parts", task_name(coordinate))
    keys = kv.list_keys(folder)
    kv.delete_keys(folder, [key for key in keys if key.split("/", 1)[0] != winner])


def is_kept(file: str) -> bool:
    """Return whether the base needs a file of a merged part: data, or the record of the watershed's objects."""
    return file.startswith("d/") or file == SOURCE_RECORD


def remove_stale_parts(base: BaseInfo, winners: dict[Triple, str]) -> int:
    """Remove what the base does not need: other attempts, and the manifests and trees of merged parts.

    Call this only after all parts are merged. Returns the number of files that were removed.
    """
    folder = kv.join_url(ocdbt.base_folder(base.watershed_url), "parts")
    live = {f"{task_name(coordinate)}/{attempt}" for coordinate, attempt in winners.items()}
    stale = []
    for key in kv.list_keys(folder):
        task, attempt, file = key.split("/", 2)
        if f"{task}/{attempt}" not in live or not is_kept(file):
            stale.append(key)
    kv.delete_keys(folder, stale)
    if stale:
        _logger.info("removed %d files of parts that the base of %s does not use", len(stale), base.watershed_url)
    return len(stale)
