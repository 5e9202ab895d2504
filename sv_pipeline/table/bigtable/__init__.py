"""Bigtable: the backend for tables in Google Cloud, or in its emulator."""

from typing import Any


def __getattr__(name: str) -> Any:
    # What `table` holds was a module of this package's name before.
    from importlib import import_module

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("sv_pipeline.table.bigtable.table"), name)
