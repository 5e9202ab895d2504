"""Edits that are interrupted just when they have got their locks, in a process that lives on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sv_pipeline import edits
from sv_pipeline.edits import MergeRequest, Points
from sv_pipeline.table import held_locks
from sv_pipeline.table.columns import LOCK
from sv_pipeline.testing.models import touching
from sv_pipeline.testing.tables import EVERYTHING
from sv_pipeline.testing.volumes import cells
from sv_pipeline.testing.worlds import EVERYWHERE, build


class _Interrupted(threading.Thread):
    """The thread that renews locks; the interrupt comes while its start is awaited, or before."""

    started_before = True

    def start(self) -> None:
        if self.started_before:
            super().start()
        raise KeyboardInterrupt


@pytest.mark.parametrize("started", [True, False])
def test_no_lock_is_left_and_nothing_renews_it(started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build(cells((16, 16, 8), 8, 1, labels_per_object=1), tmp_path)
    one, other = sorted(touching(world.voxels()))[0]

    class OfLocks(_Interrupted):
        started_before = started

    class Threading:
        Thread, Event = OfLocks, threading.Event

    monkeypatch.setattr(held_locks, "threading", Threading)
    request = MergeRequest("tester", Points.of([one]), Points.of([other]), EVERYWHERE)
    with pytest.raises(KeyboardInterrupt):
        edits.merge(world.graph, request)
    assert not list(world.table.scan([EVERYTHING], [LOCK.key]))
    for thread in threading.enumerate():
        if thread.name.startswith("locks of"):
            thread.join(5)
            assert not thread.is_alive()
