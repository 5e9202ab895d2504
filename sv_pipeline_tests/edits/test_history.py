"""Edits can be taken back and made again, and the log shows what was done."""

from __future__ import annotations

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import Reason
from sv_pipeline.graph import queries
from sv_pipeline.operations.log import read_operations
from sv_pipeline.reports.edit_numbers import operations_table
from sv_pipeline_tests.edits.conftest import Edited, merge_request, state


@pytest.mark.parametrize("same", [False, True], ids=["merge", "split"])
def test_undo_restores_and_redo_repeats(edited: Edited, same: bool) -> None:
    before = state(edited)
    edit = (edited.split if same else edited.merge)(*edited.pairs(same=same)[0])
    after = state(edited)
    undone = edits.undo(edited.graph, edit.operation_id, "tester")
    assert state(edited) == before != after
    edits.redo(edited.graph, edit.operation_id, "tester")
    assert state(edited) == after
    again = edits.undo(edited.graph, edit.operation_id, "tester")
    assert state(edited) == before
    edits.undo(edited.graph, again.operation_id, "tester")
    assert state(edited) == after, "the undo of an undo is a redo"
    kinds = [operation.kind for operation in read_operations(edited.graph)]
    assert kinds == [edit.kind, "undo", "redo", "undo", "redo"]
    assert undone.kind == "undo"


def test_a_row_of_edits_is_undone_from_the_last_to_the_first(edited: Edited) -> None:
    states, done = [state(edited)], []
    for seed in range(3):
        for same in (False, True):
            source, sink = edited.pairs(same=same, seed=seed)[0]
            try:
                done.append((edited.split if same else edited.merge)(source, sink))
            except edits.EditRefused:
                continue
            states.append(state(edited))
    for edit in reversed(done):
        assert states.pop() == state(edited)
        edits.undo(edited.graph, edit.operation_id, "tester")
    assert states == [state(edited)]


def test_what_cannot_be_undone_is_refused(edited: Edited) -> None:
    edit = edited.merge(*edited.pairs(same=False)[0])
    with pytest.raises(edits.EditRefused) as refused:
        edits.merge(edited.graph, merge_request(*[[sv] for sv in edited.pairs(same=True)[0]]))
    undo = edits.undo(edited.graph, edit.operation_id, "tester")
    for operation_id in (4711, refused.value.operation_id, edit.operation_id):
        assert operation_id is not None
        with pytest.raises(edits.EditRefused) as caught:
            edits.undo(edited.graph, operation_id, "tester")
        assert caught.value.reason is Reason.NOTHING_TO_UNDO
    with pytest.raises(edits.EditRefused):
        edits.redo(edited.graph, undo.operation_id, "tester")


def test_the_table_of_operations_lists_them_all(edited: Edited) -> None:
    edit = edited.merge(*edited.pairs(same=False)[0])
    with pytest.raises(edits.EditRefused):
        edits.merge(edited.graph, merge_request(*[[sv] for sv in edited.pairs(same=True)[0]]))
    table = operations_table(edited.graph)
    assert table["status"].tolist() == ["SUCCESS", "EXCEPTION"]
    assert table["refused"].tolist() == ["", "same_root"]
    assert table["kind"].tolist() == ["merge", "merge"]
    assert table.loc[edit.operation_id, "roots"] == edit.roots.tolist()


def test_objects_of_the_past_can_be_read(edited: Edited) -> None:
    source, sink = edited.pairs(same=False)[0]
    old = [edited.model.component_of(sv) for sv in (source, sink)]
    edit = edited.merge(source, sink)
    before = edit.logical_time - 1
    found = queries.leaves(edited.graph, queries.roots(edited.graph, [source, sink], at=before))
    parts = np.split(found.values, found.offsets[1:-1])
    assert [frozenset(part.tolist()) for part in parts] == old
