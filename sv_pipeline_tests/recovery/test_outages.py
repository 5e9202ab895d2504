"""A table that does not answer for a while, and storage that fails: edits and recoveries wait, or are healed later."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import psutil
import pytest

from sv_pipeline.recovery import find_unfinished
from sv_pipeline.testing.harness.actors import BROKEN, DONE
from sv_pipeline.testing.servers.gcs import RESET
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.recovery.conftest import Theatre

KILLED = -9
OUTAGE_SECONDS = 30.0


def emulator_process() -> psutil.Process:
    children = psutil.Process().children(recursive=True)
    return next(child for child in children if "cbtemulator" in " ".join(child.cmdline()))


@pytest.mark.slow
def test_a_table_that_is_away_for_half_a_minute_delays_an_edit_and_its_recovery(
    theatre: Callable[..., Theatre],
) -> None:
    """In the middle of the writes of one edit; another one died just before."""
    play = theatre("bigtable")
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    (dead,) = find_unfinished(play.scene.graph)
    editor = play.start(**play.request("elsewhere"), failpoint="new rows written:pause:2", beat=1.0)
    time.sleep(1.0)
    emulator = emulator_process()
    emulator.send_signal(signal.SIGSTOP)
    try:
        healer = play.start(do="recover", operation=dead.operation_id, beat=1.0)
        time.sleep(OUTAGE_SECONDS)
        assert play.fork_server.poll(editor) is None, "it waits"
    finally:
        emulator.send_signal(signal.SIGCONT)
    assert play.fork_server.wait(editor, 120) == DONE
    assert play.fork_server.wait(healer, 120) in (DONE, BROKEN)
    assert play.do(do="heal") == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split", "elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize("status", [503, RESET])
def test_storage_that_fails_now_and_then_is_healed_over(
    theatre: Callable[..., Theatre], gcs_server: GcsControl, status: int
) -> None:
    play = theatre("sqlite", bucket=gcs_server.new_bucket())
    twin = play.twin("supervoxel split", "elsewhere")
    for method, phase in (("GET", "before"), ("POST", "before"), ("POST", "after")):
        gcs_server.add_fault(method=method, match="ocdbt/stage/", status=status, phase=phase, probability=0.1)
    try:
        assert play.do(**play.request("supervoxel split"), failpoint="switch:kill") == KILLED
        assert play.do(**play.request("elsewhere")) == DONE
        deadline = time.monotonic() + 120
        while find_unfinished(play.scene.graph) and time.monotonic() < deadline:
            play.do(do="heal")
        assert any(name.startswith("data/ocdbt/stage/") for _, name in gcs_server.requests())
    finally:
        gcs_server.clear()
    play.scene.prove()
    assert play.scene.objects() == twin


@pytest.mark.slow
def test_storage_that_is_away_leaves_the_operation_listed_and_is_healed_when_it_is_back(
    theatre: Callable[..., Theatre], gcs_server: GcsControl
) -> None:
    play = theatre("sqlite", bucket=gcs_server.new_bucket())
    assert play.do(**play.request("supervoxel split"), failpoint="voxels written:kill") == KILLED
    gcs_server.add_fault(match="ocdbt/stage/", status=403)
    try:
        (one,) = find_unfinished(play.scene.graph)
        assert play.do(do="recover", operation=one.operation_id) == BROKEN
        assert len(find_unfinished(play.scene.graph)) == 1
    finally:
        gcs_server.clear()
    assert play.do(do="heal") == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")
