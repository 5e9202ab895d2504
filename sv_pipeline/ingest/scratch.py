"""The scratch place of a sample: a table, and a folder for a watershed and a base. It is always removed again.

A record below ``samples/`` in the home folder names both. It is written before anything else, and removed last, so that
what a killed process leaves behind is known by name, and `remove_leftover` can remove it::

    <home>/samples/plan-<12 digits>.json        the record
    <watershed>/.samples/plan-<12 digits>/      the folder
    table plan-<12 digits>                      in the backend of the graph
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sv_pipeline.config import DatasetConfig, IngestMode, parse_config
from sv_pipeline.errors import ConfigError, ConflictError, CorruptionError, NotFoundError
from sv_pipeline.failpoints import reach
from sv_pipeline.registry import Dataset, absolute
from sv_pipeline.storage import kv
from sv_pipeline.storage.context import reset_context
from sv_pipeline.storage.file_guard import local_path
from sv_pipeline.storage.private_files import write_private
from sv_pipeline.table import open_table

__all__ = ["Leftover", "leftovers", "remove_leftover", "scratch_dataset"]

logger = logging.getLogger(__name__)

FOLDER = "samples/"
IN_WATERSHED = ".samples"
PREFIX = "plan-"


@dataclass(frozen=True)
class Leftover:
    """The scratch place of a sample that has not been removed."""

    name: str
    graph_id: str
    """The graph of the configuration from which the sample was taken."""
    folder: str
    """Folder of its watershed and base."""
    worker: str
    """Host and process that took it."""
    time: str
    config: dict[str, Any]
    """Configuration of the scratch graph; its table has the name of the sample."""
    made_watershed: bool
    """Whether the folder of the watershed did not exist before."""
    birth: str | None = None
    """When the process was started, as the system counts it; None where the system does not tell."""

    @property
    def is_running(self) -> bool:
        """Whether its process still runs on this host."""
        host, _, pid = self.worker.rpartition(":")
        return host == socket.gethostname() and self.birth is not None and _birth(int(pid)) == self.birth

    @property
    def is_elsewhere(self) -> bool:
        """Whether its process ran on another host, so that it is not known whether it still runs."""
        return self.worker.rpartition(":")[0] != socket.gethostname()


@contextmanager
def scratch_dataset(config: DatasetConfig, home: str, *, makes_watershed: bool) -> Iterator[tuple[Dataset, str]]:
    """Yield a dataset in a scratch place, and the folder of its watershed and base; remove everything at the end.

    Parameters
    ----------
    config
        Configuration of the graph to sample.
    makes_watershed
        Whether the scratch dataset gets a watershed of its own, made from the source. Otherwise its graph uses the
        watershed and the edge files of the configuration, and only its base is in the folder.

    Raises
    ------
    ConfigError
        If the backend cannot be written, or cannot be reached with what the configuration says.
    """
    config = absolute(config)
    name = f"{PREFIX}{uuid.uuid4().hex[:12]}"
    watershed = kv.as_url(config.data_source.watershed)
    folder = kv.join_url(watershed, IN_WATERSHED, name)
    place = local_path(watershed)
    scratch = _scratch_config(config, name, folder if makes_watershed else None)
    record = Leftover(
        name=name,
        graph_id=config.graph_id,
        folder=folder,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        config=scratch.model_dump(mode="json", by_alias=True),
        made_watershed=place is not None and not place.exists(),
        birth=_birth(os.getpid()),
    )
    # A backend that cannot be used is refused before the record is written: its table could not be removed either.
    table = open_table(scratch, home)
    if table.read_only:
        raise ConfigError(
            "a sample writes a scratch table, but backend_client.CONFIG.READ_ONLY is true.",
            remedy="Set it to false for the plan, or plan without --sample.",
        )
    table.exists()
    table.close()
    write_private(kv.as_url(home) + FOLDER, f"{name}.json", json.dumps(record.__dict__, indent=1).encode())
    reach("sample_recorded")
    dataset = Dataset(parse_config(record.config, stored=True), home)
    try:
        yield dataset, folder
    except BaseException as error:
        dataset.close()
        try:
            _remove(record, home)
        except Exception as failure:  # noqa: BLE001 - what went wrong first is what the user has to know
            error.add_note(
                f"The sample {name} could not be removed ({failure}). Do it later: 'sv-pipeline plan --clean {name}'."
            )
        else:
            error.add_note(f"The sample {name} is removed; no part of it stays.")
        raise
    dataset.close()
    _remove(record, home)


def leftovers(home: str) -> list[Leftover]:
    """Return the samples of a home folder that have not been removed, those that are running included."""
    url = kv.as_url(home) + FOLDER
    names = [key for key in kv.list_keys(url) if key.startswith(PREFIX) and key.endswith(".json")]
    return [_parse(raw, url + name) for name, raw in zip(names, kv.read_many(url, names), strict=True) if raw]


def remove_leftover(home: str, name: str) -> None:
    """Remove what a sample has left behind.

    Raises
    ------
    NotFoundError
        If there is no such sample.
    ConflictError
        If its process is still running.
    """
    found = {leftover.name: leftover for leftover in leftovers(home)}
    if name not in found:
        known = ", ".join(found) or "none"
        raise NotFoundError(f"there is no sample {name!r} in {home} (there are: {known}).", remedy="Check the name.")
    if found[name].is_running:
        raise ConflictError(f"sample {name} is being taken by process {found[name].worker}.", remedy="Wait for it.")
    _remove(found[name], home)


def _remove(record: Leftover, home: str) -> None:
    """Remove table and folder, then the record. It may be repeated."""
    if not record.name.startswith(PREFIX) or not record.folder.endswith(f"/{IN_WATERSHED}/{record.name}/"):
        raise CorruptionError(f"the record of sample {record.name!r} names a folder that is not its own.")
    config = parse_config(record.config, stored=True)
    open_table(config.model_copy(update={"graph_id": record.name}), home).drop()
    reach("sample_table_removed")
    path = local_path(record.folder)
    if path is None:
        kv.delete_prefix(record.folder)
    else:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # other samples may be there
            path.parent.rmdir()
            if record.made_watershed:
                path.parent.parent.rmdir()
    reset_context()
    kv.delete_key(kv.as_url(home) + FOLDER, f"{record.name}.json")


def _scratch_config(config: DatasetConfig, name: str, watershed: str | None) -> DatasetConfig:
    """The configuration of the scratch graph; it keeps all that has an effect on the work."""
    data_source = config.data_source.model_copy(
        update={
            "edges": config.edges_url if watershed is None else None,
            "components": config.components_url if watershed is None else None,
            **({} if watershed is None else {"watershed": watershed}),
        }
    )
    return config.model_copy(
        update={
            "graph_id": name,
            "data_source": data_source,
            "graph_config": config.graph_config.model_copy(update={"id_prefix": ""}),
            "ingest": config.ingest.model_copy(update={"mode": IngestMode.BOTH}),
            "events": (),
        }
    )


def _parse(raw: bytes, where: str) -> Leftover:
    try:
        return Leftover(**json.loads(raw))
    except (ValueError, TypeError) as error:
        raise CorruptionError(
            f"{where} does not hold the record of a sample ({error}).",
            remedy="Remove that file, then the table and the folder of this name.",
        ) from error


def _birth(pid: int) -> str | None:
    """When a process was started, in clock ticks since the boot of this machine; None if it does not run."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None
