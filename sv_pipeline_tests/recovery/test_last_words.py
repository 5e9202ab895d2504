"""However an edit ends, its last words say what becomes of its operation, and that is what happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.testing.harness.actors import BROKEN, DONE, LOST
from sv_pipeline_tests.recovery.conftest import Theatre

WITHOUT_EFFECT = ("lock", "locked", "planned")
WRITING = ("half locked", "new rows written", "voxels", "voxels written", "half switched", "switch written")
UNFINISHED, ENDED, COMPLETE = "is unfinished", "has ended without effect", "is complete: the edit is made"


def newest(play: Theatre) -> int:
    return max(one.operation_id for one in read_operations(play.scene.graph))


def prove_last_words(play: Theatre, kind: str, said: str) -> None:
    """What was said holds; and recovery does what was promised."""
    operation = newest(play)
    assert f"Operation {operation} " in said
    (found,) = read_operations(play.scene.graph, [operation])
    opened = find_unfinished(play.scene.graph)
    if ENDED in said:
        assert not opened
        assert found.status is OperationStatus.EXCEPTION
        assert play.scene.objects() == play.twin()
        assert play.do(**play.request(kind)) == DONE
    else:
        assert UNFINISHED in said or COMPLETE in said
        assert "Do not repeat the request" in said
        assert play.do(do="heal") == DONE
        assert read_operations(play.scene.graph, [operation])[0].status is OperationStatus.SUCCESS
    play.scene.prove()
    assert play.scene.objects() == play.twin(kind)


@pytest.mark.parametrize(
    ("backend", "step"),
    [(("sqlite", "bigtable")[at % 2], step) for at, step in enumerate((*WITHOUT_EFFECT, *WRITING, "succeeded"))],
)
def test_an_error_at_any_step_says_how_the_operation_stands(
    theatre: Callable[..., Theatre], backend: str, step: str
) -> None:
    play = theatre(backend)
    code, said = play.said(**play.request("supervoxel split"), failpoint=f"{step}:raise")
    assert code == BROKEN
    assert (ENDED in said) is (step in WITHOUT_EFFECT)
    assert (COMPLETE in said) is (step == "succeeded")
    assert "FailpointError" in said
    prove_last_words(play, "supervoxel split", said)


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
@pytest.mark.parametrize("recovered", [True, False])
def test_an_owner_that_comes_too_late_says_how_its_operation_was_recovered(
    theatre: Callable[..., Theatre], backend: str, recovered: bool
) -> None:
    play = theatre(backend)
    late = play.stop(**play.request("supervoxel split"), failpoint="new rows written:stop")
    time.sleep(0.3)
    if recovered:
        assert play.do(do="heal") == DONE
    else:
        assert play.do(do="abandon", operation=newest(play), user="emma") == DONE
    assert play.wake(late) == LOST
    said = play.word_of(late)
    assert "recover it" not in said
    if recovered:
        assert COMPLETE in said
        assert play.scene.objects() == play.twin("supervoxel split")
    else:
        assert ENDED in said
        assert "it fails for ever" in said
        assert play.scene.objects() == play.twin()
    play.scene.prove()


def test_a_table_that_is_gone_leaves_an_operation_that_is_called_unfinished(theatre: Callable[..., Theatre]) -> None:
    play = theatre("sqlite")
    result = play.folder / "last words"
    file = play.scene.table.file
    assert file is not None
    folder = file.parent
    pid = play.start(**play.request("supervoxel split"), failpoint="new rows written:pause:1.5", result=str(result))
    wait_for_locks(play)
    folder.rename(away := folder.with_name("away"))
    assert play.fork_server.wait(pid) == BROKEN
    shutil.rmtree(folder, ignore_errors=True)
    away.rename(folder)
    prove_last_words(play, "supervoxel split", result.read_text())


def wait_for_locks(play: Theatre) -> None:
    deadline = time.monotonic() + 90
    while not play.scene.indefinite_locks():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- a disk without room ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 MB; only where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "none", str(place)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk up to so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        while (left := shutil.disk_usage(disk).free - leave) > 0:
            file.write(bytes(min(left, 1 << 20)))
            file.flush()
    return ballast


def test_a_disk_that_fills_up_at_the_commit_of_voxels_leaves_an_edit_that_recovery_makes(
    theatre: Callable[..., Theatre], small_disk: Path
) -> None:
    play = theatre("sqlite", bucket=f"file://{small_disk}/ws/")
    result = play.folder / "last words"
    pid = play.start(**play.request("supervoxel split"), failpoint="voxels:pause:2", result=str(result))
    wait_for_locks(play)
    ballast = fill(small_disk, 0)
    assert play.fork_server.wait(pid) == BROKEN
    said = result.read_text()
    assert UNFINISHED in said
    assert "try again" not in said.splitlines()[-1]
    ballast.unlink()
    prove_last_words(play, "supervoxel split", said)


def test_a_disk_without_room_is_noticed_before_anything_is_locked(
    theatre: Callable[..., Theatre], small_disk: Path
) -> None:
    play = theatre("sqlite", bucket=f"file://{small_disk}/ws/")
    ballast = fill(small_disk, 20 << 20)
    code, said = play.said(**play.request("supervoxel split"))
    assert code == BROKEN
    assert "MB are left on the disk" in said
    assert ENDED in said
    ballast.unlink()
    prove_last_words(play, "supervoxel split", said)


# -- a terminal -------------------------------------------------------------------------------------------------------


def in_a_terminal(home: Path, request: dict[str, Any], failpoint: str) -> subprocess.Popen[str]:
    points = [f"--{side}={','.join(map(str, request[side][0]))}" for side in ("source", "sink")]
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(home), "split", "stage", *points]
    return subprocess.Popen(
        command,
        env={**os.environ, "SV_PIPELINE_FAILPOINT": failpoint},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("number", "step", "words"),
    [(signal.SIGINT, "new rows written", UNFINISHED), (signal.SIGTERM, "half switched", UNFINISHED)],
)
def test_a_terminal_that_is_interrupted_says_in_its_last_line_what_becomes_of_the_edit(
    theatre: Callable[..., Theatre], tmp_path: Path, number: signal.Signals, step: str, words: str
) -> None:
    home = tmp_path / "home"
    play = theatre("sqlite", home)
    process = in_a_terminal(home, play.request("supervoxel split"), f"{step}:pause:30")
    wait_for_locks(play)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert words in said.strip().splitlines()[-1]
    prove_last_words(play, "supervoxel split", said)
