"""Removes a graph, or the base of a watershed without graphs. Lists first what would be removed.

| # | step of the removal of a graph | state after a kill |
| --- | --- | --- |
| 1 | hide the graph in the registry | only its retirement finds it |
| 2 | look for unfinished operations; show the graph again if there are any | the same, or as before |
| 3 | remove the fork: its manifest first, then its files, published documents and its record | no voxels |
| 4 | drop the table | no rows |
| 5 | remove files that a commit has written since step 3, the forecast, and the entry of the registry | nothing |

The next run continues at step 2, or at step 3 if the voxels are gone. The base and the watershed stay.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import ConfigError, ConflictError, CorruptionError, NotFoundError
from sv_pipeline.failpoints import reach
from sv_pipeline.ingest.planning import forget_forecast
from sv_pipeline.operations.pair import find_misfit
from sv_pipeline.operations.unfinished import Unfinished
from sv_pipeline.recovery.scan import all_unfinished
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.segmentation.base.base import FORKS, Base
from sv_pipeline.segmentation.fork.contract import READERS, published_folder
from sv_pipeline.segmentation.fork.records import NEWEST, read_value
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.presence import removing, require_unbuilt
from sv_pipeline.storage.timed_files import TimedFile, list_files
from sv_pipeline.table import counters

__all__ = ["BaseRetirement", "Retirement", "plan_base_retirement", "plan_retirement", "retire", "retire_base"]

SEARCH_SECONDS = 60.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retirement:
    """What the retirement of a graph removes."""

    graph_id: str
    fork: str
    fork_files: int
    fork_bytes: int
    published_files: int
    table: str | None
    """Name of the table; None if it does not exist."""
    table_bytes: int | None
    """Size of the table's files; None if the backend does not tell."""
    operations: int
    """Number of the last operation in the log."""
    base: str
    other_forks: tuple[str, ...]
    """Ids of the other graphs that have forks of the same base."""
    warning: str = ""
    """Why the fork may belong to a table elsewhere; empty if it does not look so."""

    def to_dict(self) -> dict[str, Any]:
        """Return the list for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the list as lines of text."""
        size = "" if self.table_bytes is None else f", {self.table_bytes / 1e6:.2f} MB"
        table = "it has no table" if self.table is None else f"{self.table}{size}, {self.operations} operations"
        forks = f"{len(self.other_forks)} other forks read it" if self.other_forks else "no other fork reads it"
        return [
            f"graph {self.graph_id}",
            f"fork        {self.fork_bytes / 1e6:.2f} MB in {self.fork_files} files: {self.fork}",
            f"published   {self.published_files} files for readers",
            f"table       {table}",
            "registry    its entry and forecast, and its partitions in Dagster",
            f"stays       the watershed and its base ({self.base}); {forks}",
            *([f"WARNING     {self.warning}"] if self.warning else []),
        ]


@dataclass(frozen=True)
class BaseRetirement:
    """What the retirement of a base removes."""

    folder: str
    files: int
    bytes: int

    def lines(self) -> list[str]:
        """Return the list as lines of text."""
        return [
            f"base        {self.bytes / 1e6:.2f} MB in {self.files} files: {self.folder}",
            "stays       the watershed: its voxels, edge files and component files",
        ]


def plan_retirement(registry: Registry, graph_id: str) -> Retirement:
    """List and sum what the retirement of a graph would remove. Nothing is changed.

    Raises
    ------
    NotFoundError
        If no such graph is registered.
    ConflictError
        If operations are unfinished, the graph is being built or retired, or its voxels are the base itself.
    ConfigError
        If the table is opened read-only.
    """
    require_unbuilt(registry.home, graph_id)
    return _plan(registry, graph_id)


def _plan(registry: Registry, graph_id: str) -> Retirement:
    hidden = registry.get_retiring(graph_id)
    dataset = registry.get(graph_id) if hidden is None else hidden
    _refuse_in_place(dataset)
    _refuse_read_only(dataset)
    if hidden is None:
        _refuse_unfinished(dataset)
    folder, table = ocdbt.fork_folder(dataset.watershed_url, graph_id), dataset.existing_table
    own = list_files(folder)
    file = None if table is None else table.file
    return Retirement(
        graph_id=graph_id,
        fork=folder,
        fork_files=len(own),
        fork_bytes=_size(own),
        published_files=len(kv.list_keys(published_folder(dataset.watershed_url, graph_id))),
        table=None if table is None else table.name,
        table_bytes=None if file is None else sum(f.stat().st_size for f in file.parent.iterdir() if f.is_file()),
        operations=0 if table is None else counters.last_operation_id(table),
        base=dataset.base.folder,
        other_forks=tuple(name for name in dataset.base.forks() if name != graph_id),
        warning=_warning(dataset),
    )


def retire(registry: Registry, graph_id: str) -> Retirement:
    """Remove a graph: its fork, its published documents, its table and its entry in the registry.

    Danger: nothing of the graph is left, unless there is a backup. If the process is killed, the call is repeated.

    Returns
    -------
    Retirement
        What was found and removed.

    Raises
    ------
    NotFoundError
        If no such graph is registered.
    ConflictError
        If operations are unfinished, another process with the same local home builds or retires the graph, or the
        graph's voxels are the base itself; nothing was removed, and the graph is shown if an earlier call has hidden
        it.
    ConfigError
        If the table is opened read-only; nothing was removed.
    """
    with removing(registry.home, graph_id):
        return _retire(registry, graph_id)


def _retire(registry: Registry, graph_id: str) -> Retirement:
    plan = _plan(registry, graph_id)
    dataset = registry.begin_retiring(graph_id)
    reach("retire marked")
    if not _is_under_way(dataset):
        try:
            _refuse_unfinished(dataset)  # one may have begun before the graph was hidden
        except ConflictError:
            registry.stop_retiring(graph_id)
            raise
    dataset.fork.remove(force=True)
    reach("retire fork")
    if dataset.existing_table is not None:
        dataset.table.drop()
    reach("retire table")
    kv.delete_prefix(ocdbt.fork_folder(dataset.watershed_url, graph_id))
    dataset.close()
    forget_forecast(dataset)
    registry.end_retiring(graph_id)
    reach("retired")
    _logger.info("graph %s was retired", graph_id)
    return plan


def plan_base_retirement(registry: Registry, watershed_url: str) -> BaseRetirement:
    """List and sum what the retirement of the base of a watershed would remove. Nothing is changed.

    Raises
    ------
    NotFoundError
        If there is no base.
    ConflictError
        If a graph is registered for this watershed, a fork of the base exists, or other software made the base.
    """
    base = Base(watershed_url)
    registered = [name for name in registry.graph_ids() if registry.get(name).watershed_url == base.watershed_url]
    if registered:
        raise ConflictError(
            f"the base of {base.watershed_url} belongs to the graphs {', '.join(registered)}.",
            remedy="Retire them first (sv-pipeline retire).",
        )
    folder = ocdbt.ocdbt_folder(base.watershed_url)
    files = list_files(folder)
    if not files:
        raise NotFoundError(f"there is no base at {base.folder}.", remedy="Check the folder of the watershed.")
    # A fork that other software has made is not in the list of forks.
    manifests = [file.name.split("/") for file in files if file.name.endswith("/" + ocdbt.SINGLE_MANIFEST)]
    forks = {parts[0] for parts in manifests if len(parts) == 2 and parts[0] != "base"} | {*base.forks()}
    if forks:
        raise ConflictError(
            f"the base of {base.watershed_url} is in use by the forks {', '.join(sorted(forks))}, which would be lost.",
            remedy="Retire their graphs first (sv-pipeline retire); 'sv-pipeline attach' registers a graph that is "
            "registered elsewhere.",
        )
    if any(file.name.startswith("base/") for file in files) and base.info().made_elsewhere:
        raise ConflictError(f"other software made the base at {base.folder}.", remedy="It is not removed from here.")
    return BaseRetirement(folder, len(files), _size(files))


def retire_base(registry: Registry, watershed_url: str) -> BaseRetirement:
    """Remove the base of a watershed that no graph uses; see `plan_base_retirement` for the errors."""
    plan = plan_base_retirement(registry, watershed_url)
    base = Base(watershed_url)
    base.wipe()
    reach("retire base")
    for prefix in (FORKS, READERS):  # remains of graphs that are gone
        kv.delete_prefix(ocdbt.ocdbt_folder(base.watershed_url), prefix)
    return plan


def _refuse_in_place(dataset: Dataset) -> None:
    if dataset.fork.is_in_place():
        raise ConflictError(
            f"the voxels of graph {dataset.graph_id!r} are the base itself, which other software made.",
            remedy="Such a graph is not removed from here.",
        )


def _refuse_read_only(dataset: Dataset) -> None:
    if dataset.table.read_only:
        raise ConfigError(
            f"the table of graph {dataset.graph_id!r} is opened read-only, so the graph cannot be removed.",
            remedy="Set backend_client.CONFIG.READ_ONLY to false.",
        )


def _warning(dataset: Dataset) -> str:
    """Return why the fork may be that of another installation, which has the table; empty if it does not look so."""
    if not dataset.fork.exists():
        return ""
    try:
        if dataset.existing_table is not None:
            misfit = find_misfit(dataset.graph)
            return "" if misfit is None else misfit.message
        if read_value(dataset.fork.store().kv, NEWEST) is not None:
            return "the fork has edits, but there is no table here: the graph may be in use elsewhere."
    except (CorruptionError, NotFoundError):
        pass  # what is damaged, or was never set up, can be removed
    return ""


def _is_under_way(dataset: Dataset) -> bool:
    """Return whether the voxels of a hidden graph are removed already, so that nothing can be recovered any more."""
    return dataset.config.ingest.mode is not IngestMode.GRAPH and not dataset.fork.exists()


def _refuse_unfinished(dataset: Dataset) -> None:
    found = _unfinished(dataset)
    if found:
        named = ", ".join(str(one.id) for one in found[:10]) + (", ..." if len(found) > 10 else "")
        raise ConflictError(
            f"graph {dataset.graph_id!r} has {len(found)} unfinished operations ({named}).",
            remedy=f"Wait until they have ended, or recover them: 'sv-pipeline stuck list {dataset.graph_id}'.",
        )


def _unfinished(dataset: Dataset) -> list[Unfinished]:
    if dataset.existing_table is None:
        return []
    try:
        graph = dataset.graph
    except NotFoundError:
        return []  # it was never set up
    return all_unfinished(graph, seconds=SEARCH_SECONDS, note=False)  # a plan changes nothing


def _size(files: list[TimedFile]) -> int:
    return sum(file.size for file in files)
