"""The messages of Bigtable's protocol, as Google's client defines them, but without the client.

The packages of the messages belong to two that load every service of Google's client when they are imported, which
takes half a second: most of the time of a short command. So the messages are imported below empty packages, which are
then removed. Whoever imports Google's client later gets all of it, with these same messages. They are those of protobuf
itself, without the wrappers of Google's client, which are slow.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "CheckAndMutateRowRequest",
    "CheckAndMutateRowResponse",
    "CreateTableRequest",
    "DeleteTableRequest",
    "Entry",
    "GcRule",
    "MutateRowsRequest",
    "MutateRowsResponse",
    "Mutation",
    "ReadModifyWriteRowRequest",
    "ReadModifyWriteRowResponse",
    "ReadRowsRequest",
    "ReadRowsResponse",
    "RowFilter",
    "RowRange",
]

_DATA, _ADMIN = "google.cloud.bigtable_v2", "google.cloud.bigtable_admin_v2"


@contextmanager
def _empty_package(name: str) -> Iterator[None]:
    """Let modules of a package be imported without running the package's own module, unless it was imported before."""
    if name in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None
    package = types.ModuleType(name)
    package.__path__ = spec.submodule_search_locations or []
    sys.modules[name] = package
    try:
        yield
    finally:
        del sys.modules[name]


with _empty_package(_DATA):
    _bigtable: Any = importlib.import_module(f"{_DATA}.types.bigtable")
    _data: Any = importlib.import_module(f"{_DATA}.types.data")
with _empty_package(_ADMIN):
    _table_admin: Any = importlib.import_module(f"{_ADMIN}.types.bigtable_table_admin")
    _table: Any = importlib.import_module(f"{_ADMIN}.types.table")

ReadRowsRequest: Any = _bigtable.ReadRowsRequest.pb()
ReadRowsResponse: Any = _bigtable.ReadRowsResponse.pb()
MutateRowsRequest: Any = _bigtable.MutateRowsRequest.pb()
MutateRowsResponse: Any = _bigtable.MutateRowsResponse.pb()
Entry: Any = _bigtable.MutateRowsRequest.Entry.pb()
CheckAndMutateRowRequest: Any = _bigtable.CheckAndMutateRowRequest.pb()
CheckAndMutateRowResponse: Any = _bigtable.CheckAndMutateRowResponse.pb()
ReadModifyWriteRowRequest: Any = _bigtable.ReadModifyWriteRowRequest.pb()
ReadModifyWriteRowResponse: Any = _bigtable.ReadModifyWriteRowResponse.pb()
RowFilter: Any = _data.RowFilter.pb()
RowRange: Any = _data.RowRange.pb()
Mutation: Any = _data.Mutation.pb()
CreateTableRequest: Any = _table_admin.CreateTableRequest.pb()
DeleteTableRequest: Any = _table_admin.DeleteTableRequest.pb()
GcRule: Any = _table.GcRule.pb()
