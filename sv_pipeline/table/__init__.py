"""Tables: one interface over Bigtable and SQLite; columns, keys, counters, locks. Knows no graph."""

from __future__ import annotations

from pathlib import Path

from sv_pipeline.config import BackendType, DatasetConfig
from sv_pipeline.places import local_folder
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable

__all__ = ["Table", "open_table"]


def open_table(config: DatasetConfig, home: str | Path) -> Table:
    """Return the table of a dataset; it need not exist yet.

    Parameters
    ----------
    config
        Configuration of the dataset; it names the backend and the graph.
    home
        Home folder of this installation. SQLite tables are in ``tables`` there, unless the configuration names a
        folder.
    """
    options = config.backend_client.config
    if config.backend_client.type is BackendType.SQLITE:
        if options.path:
            folder = local_folder(options.path, what="backend_client.CONFIG.PATH")
        else:
            folder = local_folder(home, what="the home folder of SQLite tables") / "tables"
        return SqliteTable(config.table_name, folder, read_only=options.read_only)
    # This import is deferred: gRPC takes a while to load, and local graphs do not need it.
    from sv_pipeline.table.bigtable.table import BigtableTable

    return BigtableTable(config.table_name, str(options.project), str(options.instance), read_only=options.read_only)
