"""Owns the parts of a populate: private stores of tasks, and their merge into the base by reference.

Each attempt at a task writes a store of its own, ``base/parts/<task>/<attempt>/``; nobody else ever touches it while
the task may still be running. The done-marker names the attempt that won, so two workers on one task cannot mix, and a
killed one leaves nothing that counts. The merge copies the keys of winning parts into the base: their values stay
where they are, the base refers to them. In the same commit goes a key per merged task, so that a merge can be repeated,
resumed, and done in increments.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorstore as ts

from sv_pipeline.errors import CorruptionError
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.segmentation.base.markers import task_name
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.retry import retry_transport

__all__ = ["MERGED_KEYS", "clean_task", "delete_attempt", "merge_parts", "merged_tasks", "remove_stale_parts"]

Triple = tuple[int, int, int]

MERGED_KEYS = ocdbt.OWN_KEYS + "populate/"
"""One key per task whose voxels are in the base, written in the commit that brings them."""
_INFO = "info"

_logger = logging.getLogger(__name__)


def merged_tasks(base: BaseInfo) -> set[str]:
    """Names of the tasks whose voxels are in the base, as the base itself says."""
    store = ocdbt.OcdbtStore(ocdbt.base_spec(base.watershed_url))

    def read() -> set[str]:
        return {key.decode() for key in (store.kv / MERGED_KEYS).list().result()}

    return retry_transport(read, what=f"reading the merged tasks of {base.watershed_url}")


def merge_parts(base: BaseInfo, attempts: dict[Triple, str]) -> int:
    """Merge parts into the base in one atomic commit; those merged before are left out.

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
    if not attempts:
        return 0
    what = f"merging {len(attempts)} parts into the base of {base.watershed_url}"
    return retry_transport(lambda: _merge_once(base, attempts), what=what)


def _merge_once(base: BaseInfo, attempts: dict[Triple, str]) -> int:
    merged = merged_tasks(base)
    todo = {c: attempt for c, attempt in sorted(attempts.items()) if task_name(c) not in merged}
    if not todo:
        return 0
    _require_parts(base, todo)
    store = ocdbt.OcdbtStore(ocdbt.base_spec(base.watershed_url))
    with store.transaction() as transaction:
        target = store.kv.with_transaction(transaction)
        copies: list[ts.Future[Any]] = []
        for coordinate, attempt in todo.items():
            name = task_name(coordinate)
            part = ocdbt.OcdbtStore(ocdbt.part_spec(base.watershed_url, name, attempt))
            copies += _copies(part.kv, target)
            copies.append(target.write(MERGED_KEYS + name, json.dumps({"attempt": attempt}).encode()))
        for copy in copies:
            copy.result()
    return len(todo)


def _require_parts(base: BaseInfo, attempts: dict[Triple, str]) -> None:
    """Raise CorruptionError if a part is missing: TensorStore would take it for an empty one."""
    folder = kv.join_url(ocdbt.base_folder(base.watershed_url), "parts")
    keys = [f"{task_name(c)}/{attempt}/{ocdbt.SINGLE_MANIFEST}" for c, attempt in attempts.items()]
    found = kv.read_many(folder, keys)
    lost = [task_name(c) for c, manifest in zip(attempts, found, strict=True) if manifest is None]
    if lost and set(lost) - merged_tasks(base):  # merged meanwhile: by another process that has also cleaned up
        raise CorruptionError(
            f"populate tasks {', '.join(lost[:10])} of {base.watershed_url} are marked done, but their parts are gone.",
            remedy="Delete their markers below ocdbt/.populated/tasks/ and run these tasks again.",
        )


def _copies(source: ts.KvStore, target: ts.KvStore) -> Iterable[ts.Future[None]]:
    # Everything but the volume's info, which the base has.
    ranges = [ts.KvStore.KeyRange("", _INFO), ts.KvStore.KeyRange(_INFO + "\0", "")]
    return [source.experimental_copy_range_to(target, source_range=keys) for keys in ranges]


def delete_attempt(watershed_url: str | Path, coordinate: Triple, attempt: str) -> None:
    """Remove a part that lost, through the driver of its folder."""
    kv.delete_prefix(ocdbt.part_folder(watershed_url, task_name(coordinate), attempt))


def clean_task(watershed_url: str | Path, coordinate: Triple, winner: str) -> None:
    """Remove the attempts at a done task that did not win: left by killed workers, or about to lose."""
    folder = kv.join_url(ocdbt.base_folder(watershed_url), "parts", task_name(coordinate))
    keys = kv.list_keys(folder)
    kv.delete_keys(folder, [key for key in keys if key.split("/", 1)[0] != winner])


def remove_stale_parts(base: BaseInfo, winners: dict[Triple, str]) -> int:
    """Remove what the merged base does not refer to: other attempts, and the manifests of merged parts.

    Only after all parts are merged. Returns the number of files removed.
    """
    folder = kv.join_url(ocdbt.base_folder(base.watershed_url), "parts")
    live = {f"{task_name(coordinate)}/{attempt}" for coordinate, attempt in winners.items()}
    stale = []
    for key in kv.list_keys(folder):
        task, attempt, file = key.split("/", 2)
        if f"{task}/{attempt}" not in live or not file.startswith("d/"):
            stale.append(key)
    kv.delete_keys(folder, stale)
    if stale:
        _logger.info("removed %d files of parts that the base of %s does not use", len(stale), base.watershed_url)
    return len(stale)
