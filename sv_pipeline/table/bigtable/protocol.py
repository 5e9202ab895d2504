"""The messages of Bigtable's protocol that we send and receive, with those of their fields that we use.

Google's own client has them all, but importing it loads every client of every service: half a second, which is a fifth
of a small ingest and most of a short command. The protocol is public and never changes what a number of a field means
(google/bigtable/v2/*.proto, google/bigtable/admin/v2/*.proto). A test compares each field with Google's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = [
    "CheckAndMutateRowRequest",
    "CheckAndMutateRowResponse",
    "CreateTableRequest",
    "DeleteTableRequest",
    "Entry",
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

_PACKAGE = "sv_pipeline.bigtable"

# A field is `name=number type`; `*` marks a repeated one, and `|oneof` names the choice that it belongs to.
_MESSAGES = {
    "ReadRowsRequest": "table_name=1 string, rows=2 RowSet, filter=3 RowFilter, rows_limit=4 int64",
    "ReadRowsResponse": "chunks=1 CellChunk*, last_scanned_row_key=2 bytes",
    "CellChunk": (
        "row_key=1 bytes, family_name=2 StringValue, qualifier=3 BytesValue, timestamp_micros=4 int64, value=6 bytes, "
        "value_size=7 int32, reset_row=8 bool|row_status, commit_row=9 bool|row_status"
    ),
    "StringValue": "value=1 string",
    "BytesValue": "value=1 bytes",
    "RowSet": "row_keys=1 bytes*, row_ranges=2 RowRange*",
    "RowRange": (
        "start_key_closed=1 bytes|start_key, start_key_open=2 bytes|start_key, "
        "end_key_open=3 bytes|end_key, end_key_closed=4 bytes|end_key"
    ),
    "RowFilter": (
        "chain=1 Chain|filter, interleave=2 Interleave|filter, condition=3 Condition|filter, "
        "column_range_filter=7 ColumnRange|filter, timestamp_range_filter=8 TimestampRange|filter, "
        "cells_per_column_limit_filter=12 int32|filter, value_range_filter=15 ValueRange|filter, "
        "block_all_filter=18 bool|filter"
    ),
    "Chain": "filters=1 RowFilter*",
    "Interleave": "filters=1 RowFilter*",
    "Condition": "predicate_filter=1 RowFilter, true_filter=2 RowFilter, false_filter=3 RowFilter",
    "ColumnRange": (
        "family_name=1 string, start_qualifier_closed=2 bytes|start_qualifier, "
        "end_qualifier_closed=4 bytes|end_qualifier"
    ),
    "TimestampRange": "start_timestamp_micros=1 int64, end_timestamp_micros=2 int64",
    "ValueRange": "start_value_closed=1 bytes|start_value, end_value_closed=3 bytes|end_value",
    "MutateRowsRequest": "table_name=1 string, entries=2 Entry*",
    "Entry": "row_key=1 bytes, mutations=2 Mutation*",
    "MutateRowsResponse": "entries=1 Result*",
    "Result": "index=1 int64, status=2 Status",
    "Status": "code=1 int32, message=2 string",
    "Mutation": (
        "set_cell=1 SetCell|mutation, delete_from_column=2 DeleteFromColumn|mutation, "
        "delete_from_row=4 DeleteFromRow|mutation"
    ),
    "SetCell": "family_name=1 string, column_qualifier=2 bytes, timestamp_micros=3 int64, value=4 bytes",
    "DeleteFromColumn": "family_name=1 string, column_qualifier=2 bytes, time_range=3 TimestampRange",
    "DeleteFromRow": "",
    "CheckAndMutateRowRequest": (
        "table_name=1 string, row_key=2 bytes, predicate_filter=6 RowFilter, true_mutations=4 Mutation*, "
        "false_mutations=5 Mutation*"
    ),
    "CheckAndMutateRowResponse": "predicate_matched=1 bool",
    "ReadModifyWriteRowRequest": "table_name=1 string, row_key=2 bytes, rules=3 Rule*",
    "Rule": "family_name=1 string, column_qualifier=2 bytes, increment_amount=4 int64|rule",
    "ReadModifyWriteRowResponse": "row=1 Row",
    "Row": "key=1 bytes, families=2 Family*",
    "Family": "name=1 string, columns=2 Column*",
    "Column": "qualifier=1 bytes, cells=2 Cell*",
    "Cell": "timestamp_micros=1 int64, value=2 bytes",
    "CreateTableRequest": "parent=1 string, table_id=2 string, table=3 Table",
    "Table": "column_families=3 NamedFamily*",
    "NamedFamily": "key=1 string, value=2 ColumnFamily",
    "ColumnFamily": "gc_rule=1 GcRule",
    "GcRule": "max_num_versions=1 int32|rule, max_age=2 Duration|rule",
    "Duration": "seconds=1 int64",
    "DeleteTableRequest": "name=1 string",
}


def _classes() -> dict[str, Any]:
    """Make the classes of all messages."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sv_pipeline_bigtable.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        made = file.message_type.add(name=name)
        choices: list[str] = []
        for field in filter(None, fields.split(", ")):
            label, _, rest = field.partition("=")
            number, _, kind = rest.partition(" ")
            kind, _, choice = kind.partition("|")
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            added = made.field.add(name=label, number=int(number))
            added.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
            if choice:
                if choice not in choices:
                    choices.append(choice)
                    made.oneof_decl.add(name=choice)
                added.oneof_index = choices.index(choice)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _classes()
ReadRowsRequest: Any = _CLASSES["ReadRowsRequest"]
ReadRowsResponse: Any = _CLASSES["ReadRowsResponse"]
RowFilter: Any = _CLASSES["RowFilter"]
RowRange: Any = _CLASSES["RowRange"]
MutateRowsRequest: Any = _CLASSES["MutateRowsRequest"]
MutateRowsResponse: Any = _CLASSES["MutateRowsResponse"]
Entry: Any = _CLASSES["Entry"]
Mutation: Any = _CLASSES["Mutation"]
CheckAndMutateRowRequest: Any = _CLASSES["CheckAndMutateRowRequest"]
CheckAndMutateRowResponse: Any = _CLASSES["CheckAndMutateRowResponse"]
ReadModifyWriteRowRequest: Any = _CLASSES["ReadModifyWriteRowRequest"]
ReadModifyWriteRowResponse: Any = _CLASSES["ReadModifyWriteRowResponse"]
CreateTableRequest: Any = _CLASSES["CreateTableRequest"]
DeleteTableRequest: Any = _CLASSES["DeleteTableRequest"]
