"""SQLite: the backend for a table in one file of one machine."""

from typing import Any


def __getattr__(name: str) -> Any:
    # What `table` holds was a module of this package's name before.
    from importlib import import_module

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("sv_pipeline.table.sqlite.table"), name)
