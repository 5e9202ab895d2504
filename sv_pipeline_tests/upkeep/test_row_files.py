"""Files with rows give the rows back, or say that they are damaged; a cut leaves out what is not part of a backup."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.errors import ConflictError, CorruptionError
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import Cell, ColumnKey, RowView
from sv_pipeline.upkeep import row_files as files
from sv_pipeline.upkeep.backup import require_own_manifest
from sv_pipeline.upkeep.cut import BackupCut, TimesCollideError, kept_rows
from sv_pipeline.upkeep.row_files import row_files, rows_in
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.segmentation.volumes import BASES, make_watershed

cells = st.lists(st.builds(Cell, st.integers(0, 2**62), st.binary(max_size=40)), min_size=1, max_size=3)
names = st.builds(ColumnKey, st.sampled_from("01234"), st.binary(max_size=10))
tables = st.dictionaries(st.binary(min_size=1, max_size=30), st.dictionaries(names, cells, max_size=3), max_size=20)


@examples(50)
@given(table=tables, limit=st.integers(1, 400))
def test_what_is_stored_is_what_is_read(table: dict[bytes, RowView], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FILE_BYTES", limit)
        stored = list(row_files(sorted(table.items())))
    assert sum(file.rows for file in stored) == len(table)
    read = [row for file in stored for row in rows_in(file.content, file.digest, "a file")]
    assert read == sorted(table.items())


def test_a_changed_file_is_named() -> None:
    (file,) = row_files([(b"key", {ColumnKey("0", b"c"): [Cell(1, b"value")]})])
    with pytest.raises(CorruptionError, match="the place is not the file"):
        list(rows_in(file.content[:-1] + b"?", file.digest, "the place"))


def logged(number: int, time: int, status: OperationStatus = OperationStatus.SUCCESS) -> tuple[bytes, RowView]:
    moment = datetime.fromtimestamp(time / 1000, UTC)
    row = {
        columns.OPERATION_STATUS.key: [Cell(1, columns.OPERATION_STATUS.encode(int(status)))],
        columns.OPERATION_TIMESTAMP.key: [Cell(1, columns.OPERATION_TIMESTAMP.encode(moment))],
    }
    return keys.node_key(number), row


def test_cells_of_operations_that_are_not_in_the_cut_are_left_out() -> None:
    column, node = columns.PARENT.key, keys.node_key(5 << 56)
    edges = keys.edit_edge_key(2 << 56)
    rows = [
        logged(1, 1000),
        logged(2, 2000, OperationStatus.WRITE_STARTED),
        logged(3, 3000),
        logged(4, 4000),
        (node, {column: [Cell(2000, b"2"), Cell(1000, b"1"), Cell(500, b"0")], columns.LOCK.key: [Cell(9, b"l")]}),
        (keys.node_key(6 << 56), {column: [Cell(4000, b"4")]}),
        (edges, {column: [Cell(4000, b"4"), Cell(3000, b"3")]}),
        (b"ioperations", {columns.COUNTER.key: [Cell(4000, b"n")]}),
        (b"meta", {column: [Cell(4000, b"m")]}),
        (b"sv_pipeline:counts:02:00000001", {column: [Cell(2000, b"c")]}),
        (b"sv_pipeline:feed", {column: [Cell(1, b"f")]}),
        (b"sv_pipeline:op:%020d" % 2, {column: [Cell(1, b"p")]}),
        (b"sv_pipeline:op:%020d" % 3, {column: [Cell(1, b"p")]}),
        (b"sv_pipeline:open:%020d" % 2, {column: [Cell(1, b"o")]}),
        (b"\x00\x01" + b"lockrows", {columns.LOCK.key: [Cell(1, b"l")]}),
    ]
    cut = BackupCut(3, frozenset({2}), 7)
    assert dict(kept_rows(rows, cut, {2000, 4000})) == {
        **dict([rows[0], rows[2]]),
        node: {column: [Cell(1000, b"1"), Cell(500, b"0")]},
        edges: {column: [Cell(3000, b"3")]},
        **dict([rows[7], rows[8], rows[9], rows[12]]),
    }
    with pytest.raises(TimesCollideError):
        list(kept_rows(rows, cut, {3000}))


def test_forks_whose_manifest_cannot_be_written_anew_are_refused(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path), mips=2, **BASES["numbered"])
    watershed.populate()
    fork = Fork(watershed.url, "g")
    require_own_manifest(fork)  # there is no fork yet
    fork.create()
    with pytest.raises(ConflictError, match="numbered manifests"):
        require_own_manifest(fork)
