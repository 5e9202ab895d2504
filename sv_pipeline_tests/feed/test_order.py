"""The order of the feed: every finished operation once, after those that it builds on, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sv_pipeline.errors import ConfigError
from sv_pipeline.feed import journal, rows
from sv_pipeline.feed.journal import advance, current_head
from sv_pipeline.feed.rows import numbers_of, operations_after, read_head
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.feed.logs import DyingTable, Log, ProcessDiedError


def entries(table: Table) -> list[int]:
    """Operations of the feed, in its order."""
    head = read_head(table)
    return [] if head is None else [operation for _, operation in operations_after(table, head, 0, head.length)]


def check(log: Log) -> None:
    """All that the feed promises, once it was looked at to the end."""
    found = entries(log.table)
    assert sorted(found) == sorted(log.finished), "every finished operation, each once"
    place = {operation: i for i, operation in enumerate(found)}
    assert all(place[before] < place[after] for after, ones in log.finished.items() for before in ones)
    head = current_head(log.table)
    assert numbers_of(log.table, head, found) == {operation: i + 1 for operation, i in place.items()}


class Feed(RuleBasedStateMachine):
    """Edits that finish out of order, beside pollers that die or are stopped before any of their writes."""

    make_table: staticmethod
    """Makes an empty table."""

    @initialize(
        late=st.sampled_from([0.0, 600.0]), at_once=st.sampled_from([1, 3, 500]), step=st.sampled_from([2, 1000])
    )
    def start(self, late: float, at_once: int, step: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(journal, "LATE_SECONDS", late)
        self.patch.setattr(journal, "LATE_AT_ONCE", at_once)
        self.patch.setattr(journal, "OPERATIONS_AT_ONCE", step)
        self.patch.setattr(rows, "FIRST_SPAN", at_once)
        self.log = Log(self.make_table())
        self.seen: list[int] = []

    @rule(show=st.booleans())
    def begin(self, show: bool) -> None:
        operation = self.log.begin()
        if show:
            self.log.show(operation)

    @rule(data=st.data())
    def show(self, data: st.DataObject) -> None:
        if hidden := sorted(self.log.begun - self.log.shown):
            self.log.show(data.draw(st.sampled_from(hidden)))

    @rule(data=st.data(), n_old=st.integers(1, 2), n_new=st.integers(1, 2))
    def finish(self, data: st.DataObject, n_old: int, n_new: int) -> None:
        if self.log.shown:
            operation = data.draw(st.sampled_from(sorted(self.log.shown)))
            old = data.draw(st.permutations(sorted(self.log.roots)))[:n_old]
            self.log.finish(operation, old, n_new)

    @rule(data=st.data(), ours=st.booleans())
    def end_without_effect(self, data: st.DataObject, ours: bool) -> None:
        if self.log.shown:
            operation = data.draw(st.sampled_from(sorted(self.log.shown)))
            (self.log.refuse if ours else self.log.fail_as_others_do)(operation)

    @rule()
    def look(self) -> None:
        advance(self.log.table)

    @rule(writes=st.integers(0, 12))
    def look_and_die(self, writes: int) -> None:
        with contextlib.suppress(ProcessDiedError):
            advance(DyingTable(self.log.table, writes))

    @rule(writes=st.integers(0, 12), data=st.data(), n_new=st.integers(1, 2))
    def look_and_be_stopped_while_others_go_on(self, writes: int, data: st.DataObject, n_new: int) -> None:
        def others() -> None:
            advance(self.log.table)
            self.finish(data, 1, n_new)
            advance(self.log.table)

        advance(DyingTable(self.log.table, writes, meanwhile=others))

    @invariant()
    def what_was_seen_stays(self) -> None:
        if hasattr(self, "log"):
            found = entries(self.log.table)
            assert found[: len(self.seen)] == self.seen
            assert set(found) <= self.log.finished.keys(), "nothing that is unfinished is in the feed"
            self.seen = found

    def teardown(self) -> None:
        if not hasattr(self, "log"):
            return
        # A late operation is met after as many looks as its list is long.
        for _ in range(2 * (len(self.log.begun) + len(self.log.finished)) + 4):
            advance(self.log.table)
        self.what_was_seen_stays()
        check(self.log)
        self.patch.undo()
        self.log.table.close()


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
def test_every_finished_operation_comes_once_and_after_those_that_it_builds_on(
    backend: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if backend == "bigtable":
        request.getfixturevalue("bigtable_emulator")

    def make_table() -> Table:
        name = f"t{uuid.uuid4().hex[:12]}"
        made: Table
        if backend == "sqlite":
            made = SqliteTable(name, tmp_path_factory.mktemp("feed"))
        else:
            made = BigtableTable(name, "project", "instance", patience=5.0)
        made.create()
        return made

    class OnBackend(Feed):
        pass

    OnBackend.make_table = staticmethod(make_table)
    run_state_machine_as_test(
        OnBackend, settings=settings(max_examples=60 if backend == "sqlite" else 15, stateful_step_count=40)
    )


def test_an_earlier_operation_that_finishes_later_is_not_skipped(table: Table) -> None:
    log = Log(table)
    first, second = log.begin(), log.begin()
    log.show(first)
    log.show(second)
    log.finish(second, sorted(log.roots)[:1], 1)
    advance(table)
    assert entries(table) == [second]
    log.finish(first, sorted(log.roots)[-1:], 1)
    advance(table)
    assert entries(table) == [second, first]


def test_a_number_whose_row_comes_late_is_waited_for(table: Table) -> None:
    log = Log(table)
    stopped, second = log.begin(), log.begin()
    log.show(second)
    log.finish(second, sorted(log.roots)[:1], 1)
    advance(table)
    log.show(stopped)
    log.finish(stopped, sorted(log.roots)[:1], 1)
    advance(table)
    assert entries(table) == [second, stopped]


def test_what_other_software_left_unfinished_for_years_costs_no_look_and_is_found_when_repaired(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyChunkedGraph leaves a request that it refused as if it had just begun."""
    monkeypatch.setattr(journal, "LATE_AT_ONCE", 3)
    monkeypatch.setattr(rows, "FIRST_SPAN", 3)
    log = Log(table)
    old = [log.begin() for _ in range(10)]
    for operation in old:
        log.show(operation, at=1_500_000_000_000)
    advance(table)
    log.finish(old[7], sorted(log.roots)[:1], 1)
    for _ in range(5):
        advance(table)
    assert entries(table) == [old[7]]


def test_a_late_operation_comes_before_the_one_that_builds_on_it(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LATE_AT_ONCE", 1)
    monkeypatch.setattr(rows, "FIRST_SPAN", 1)
    log = Log(table)
    old = [log.begin() for _ in range(20)]
    for operation in old:
        log.show(operation, at=1_500_000_000_000)
    for _ in range(3):
        advance(table)
    log.finish(old[15], sorted(log.roots)[:1], 1)
    made = [root for root, maker in log.roots.items() if maker == old[15]]
    log.show(after := log.begin())
    log.finish(after, made, 1)
    advance(table)
    assert entries(table) == [old[15], after]


def test_a_feed_that_was_never_begun_cannot_be_read_from_a_table_that_is_read_only(tmp_path) -> None:
    table = SqliteTable("t", tmp_path)
    table.create()
    table.close()
    reader = SqliteTable("t", tmp_path, read_only=True)
    with pytest.raises(ConfigError, match="never begun"):
        advance(reader)
    reader.close()


@pytest.fixture
def long_log(table: Table) -> Log:
    log = Log(table)
    for _ in range(30):
        log.show(operation := log.begin())
        log.finish(operation, sorted(log.roots)[:1], 1)
    return log


def test_what_a_look_asks_for_does_not_grow_with_the_log(long_log: Log) -> None:
    table = long_log.table
    advance(table)

    def requests() -> int:
        before = table.round_trips
        advance(table)
        return table.round_trips - before

    short = requests()
    for _ in range(60):
        long_log.show(operation := long_log.begin())
        long_log.finish(operation, sorted(long_log.roots)[:1], 1)
    advance(table)
    assert requests() == short <= 8
    check(long_log)
