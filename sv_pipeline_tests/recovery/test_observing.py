"""Dead is what has not moved for long enough by the observer's own clock; an owner and its successor never both win."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.edits import OwnershipLostError
from sv_pipeline.errors import ConfigError
from sv_pipeline.operations import ownership
from sv_pipeline.operations.ownership import FIXED_TIME, OWNER, Owner, open_key
from sv_pipeline.operations.unfinished import RecoveryProgress, Unfinished
from sv_pipeline.operations.writing import OperationRow
from sv_pipeline.recovery.durations import parse_duration
from sv_pipeline.recovery.observing import Observations
from sv_pipeline.table import columns
from sv_pipeline.table.interface import CellMatch, SetCell, Table


def one(operation: int, signature: str) -> Unfinished:
    return Unfinished(None, operation, None, None, RecoveryProgress(), signature)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100)), min_size=1, max_size=20))
def test_how_long_it_has_not_moved_is_the_time_since_its_last_change(looks: list[tuple[str, float]]) -> None:
    notes, now, last, changed = Observations({}), 0.0, "", 0.0
    for signature, seconds in looks:
        now += seconds
        notes = Observations.of(notes.look([one(7, signature)], now).to_dict())
        changed = now if signature != last else changed
        last = signature
        assert notes.unmoved(7, now) == pytest.approx(now - changed, abs=2e-3)
    assert not notes.look([], now).seen


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5 h", 5400), ("2d", 172_800)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_what_is_no_duration_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no duration"):
        parse_duration("ten minutes")


def take_over(table: Table, row: OperationRow, seen: Owner) -> bool:
    cell = SetCell(OWNER, Owner("other", 0).encode(), FIXED_TIME)
    return table.check_and_mutate(open_key(row.operation_id), [CellMatch(OWNER, seen.encode())], if_matched=[cell])


def test_a_beat_and_a_take_over_never_both_win(table: Table) -> None:
    for _ in range(20):
        row = OperationRow.create(table, [columns.USER.set("u")], {})
        won: list[bool] = []
        thief = threading.Thread(
            target=lambda r=row, w=won: w.append(take_over(table, r, Owner(r.owner, 0)))  # type: ignore[misc]
        )
        thief.start()
        try:
            row.own._beat()
            beaten = True
        except OwnershipLostError:
            beaten = False
        thief.join()
        assert won == [not beaten]
        assert row.own.is_mine is beaten


def test_who_was_taken_over_changes_nothing_and_says_so(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    row = OperationRow.create(table, [columns.USER.set("u")], {})
    assert take_over(table, row, Owner(row.owner, 0))
    row.own.check()  # it has just shown that it lives, so it need not ask
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.0)
    with pytest.raises(OwnershipLostError, match="'other' has taken it over"):
        row.own.check()
    with pytest.raises(OwnershipLostError):
        row.own.change([])
    row.fail(ValueError("late"))
    row.own.end()
    assert open_key(row.operation_id) in table.read_rows([open_key(row.operation_id)])


def test_a_beat_whose_answer_was_lost_does_not_lose_the_operation(table: Table) -> None:
    row = OperationRow.create(table, [columns.USER.set("u")], {})
    cell = SetCell(OWNER, Owner(row.owner, 5).encode(), FIXED_TIME)
    assert not table.check_and_mutate(open_key(row.operation_id), [], if_unmatched=[cell])
    row.own.change([])
    row.own._beat()
    row.own.verify()
