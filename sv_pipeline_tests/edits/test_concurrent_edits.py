"""Processes that edit one graph at once: the result is that of their edits one after the other, and no lock is left."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import LockPatience, Reason
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowKeyRange, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.edits.conftest import Edited, merge_request, split_request
from sv_pipeline_tests.edits.machines import AT_LENGTH
from sv_pipeline_tests.edits.model import Model, stored_components, verify_rows
from sv_pipeline_tests.graph.worlds import ingest

PROCESSES = 4
EDITS = 25 if AT_LENGTH else 12
EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
PATIENT = LockPatience(60.0, 0.01)
Done = tuple[int, str, int, int]


def edit_at_random(graph: ChunkedGraph, supervoxels: np.ndarray, seed: int) -> tuple[list[Done], list[str]]:
    """What one process does: (logical time, kind, source, sink) of each edit, and why others were refused."""
    rng = np.random.default_rng(seed)
    done: list[Done] = []
    refused: list[str] = []
    for _ in range(EDITS):
        source, sink = rng.choice(supervoxels, 2, replace=False).tolist()
        one, other = roots(graph, [source, sink]).tolist()
        try:
            if one == other:
                edit = edits.split(graph, split_request([source], [sink]), patience=PATIENT)
            else:
                edit = edits.merge(graph, merge_request([source], [sink]), patience=PATIENT)
        except edits.EditRefused as refusal:
            refused.append(str(refusal.reason))
            continue
        done.append((edit.logical_time, edit.kind, source, sink))
    return done, refused


@pytest.mark.slow
def test_edits_of_four_processes_equal_the_same_edits_in_turn(
    make_graph: Callable[..., Edited], new_table: Table, tmp_path: Path
) -> None:
    contended = isinstance(new_table, SqliteTable)  # a few objects that all want; many objects
    edited = make_graph((2, 2, 2), seed=7, per_chunk=6, cross=0.0, objects=0.1 if contended else 0.6)
    arguments = [(edited.graph, edited.world.supervoxels, seed) for seed in range(PROCESSES)]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = [f.result() for f in [pool.submit(edit_at_random, *a) for a in arguments]]

    assert Reason.LOCKED not in {reason for _, refused in results for reason in refused}
    verify_rows(edited.graph)
    table = edited.graph.table
    assert not dict(table.scan([EVERYTHING], [columns.LOCK.key, columns.INDEFINITE_LOCK.key]))
    own = dict(table.scan([keys.prefix_range(b"sv_pipeline:op:")]))
    assert {column.qualifier for row in own.values() for column in row} <= {b"activated", b"attempt", b"identity"}
    log = read_operations(edited.graph)
    done = sorted(one for some, _ in results for one in some)
    assert len(log) == PROCESSES * EDITS
    assert sum(row.status is OperationStatus.SUCCESS for row in log) == len(done) > PROCESSES
    assert sum(row.status is OperationStatus.EXCEPTION for row in log) == len(log) - len(done)

    copy_folder = tmp_path / "replay"
    copy_folder.mkdir()
    copy, _ = ingest(edited.world, SqliteTable("replay", copy_folder), copy_folder)
    replay = Edited(copy, edited.world, Model.of(edited.world))
    for _, kind, source, sink in done:
        (replay.merge if kind == "merge" else replay.split)(source, sink)
    assert stored_components(edited.graph, edited.world) == replay.model.components
    replay.prove()
