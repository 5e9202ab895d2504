"""Whatever ends an edit, or a recovery, at whatever step: once it is recovered, all is as if it had not happened.

Each case is a real process that ends by SIGKILL or by an error at a named step, or that is stopped there, taken for
dead and recovered, and then goes on. Somebody else edits other objects meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.testing.harness.actors import BROKEN, DONE, LOST, NOTHING
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.stage import KINDS

BACKENDS = ("sqlite", "bigtable")
ACTIONS = ("kill", "stop", "raise")
BEFORE = ("create", "created", "lock", "locked", "chunks locked", "planned", "scope")
"""Steps before anything is left that outlives the process."""
AFTER = (
    "write started", "lock indefinitely", "half locked", "new rows written", "voxels", "voxels written",
    "switch", "half switched", "switch written", "succeed", "succeeded", "half unlocked", "released", "cleared",
)  # fmt: skip
SUBSETS = {"half started": range(4), "half locked": range(6), "half switched": range(6), "half unlocked": range(3)}
"""Steps whose changes are sent together: any subset of them may be durable, and here is a random one for each seed."""
OF_VOXELS = {"chunks locked", "voxels", "voxels written"}
OF_RECOVERY = (
    "claim", "claimed", "fence", "fenced", "restore", "restored", "switch back", "half switched back", "switched back",
    "rows removed", "clean", "cleaned", "replay", "locked", "chunks locked", "planned", *AFTER[:-1],
    "prove", "proven",
)  # fmt: skip
COMPLETE = ("succeeded", "half unlocked", "released", "cleared", "prove", "proven")
KILLED, STOPPED_BY = -9, {"kill": -9, "raise": BROKEN}

Case = tuple[str, str, str, str]


def edits_to_end() -> Iterator[Case]:
    """(backend, kind, step, action): all of them for a supervoxel split, one action at each step for the others."""
    turn = itertools.count()
    for kind in KINDS:
        with_voxels = "supervoxel" in kind
        for step in (*BEFORE, *AFTER):
            if step in OF_VOXELS and not with_voxels:
                continue
            actions = ACTIONS if kind == "supervoxel split" else (ACTIONS[next(turn) % 3],)
            for action in actions:
                # A process stopped there may just be writing its first row, and holds the file of SQLite for ever.
                action = "kill" if (step, action) == ("lock", "stop") else action
                yield BACKENDS[next(turn) // 2 % 2], kind, step, action


def subsets_to_end() -> Iterator[Case]:
    """Each subset for three kinds of edits, in turn killed and stopped, on either backend."""
    turn = itertools.count()
    for step, seeds in SUBSETS.items():
        for seed in seeds:
            for kind in ("supervoxel split", "merge by hand", "split"):
                at = next(turn)
                yield BACKENDS[at // 2 % 2], kind, f"{step} {seed}", ("kill", "stop")[at % 2]


def recoveries_to_end() -> Iterator[Case]:
    turn = itertools.count()
    for step in OF_RECOVERY:
        for action in (
            ("kill", "stop") if step in ("claimed", "restore", "switch", "succeed") else (ACTIONS[next(turn) % 3],)
        ):
            yield BACKENDS[next(turn) % 2], "supervoxel split", step, action
    for step, seeds in SUBSETS.items():
        yield BACKENDS[next(turn) % 2], "supervoxel split", f"{step} {seeds[-1]}", ACTIONS[next(turn) % 2]
    for step in ("claimed", "release", "half released", "all released", "clean", "lock indefinitely", "succeed"):
        yield BACKENDS[next(turn) % 2], "merge", step, ACTIONS[next(turn) % 3]


def statuses(theatre: Theatre, first: int) -> dict[int, OperationStatus | None]:
    log = read_operations(theatre.scene.graph)
    return {one.operation_id: one.status for one in log if one.operation_id > first}


def newest(theatre: Theatre) -> int:
    return max((one.operation_id for one in read_operations(theatre.scene.graph)), default=0)


def judge(theatre: Theatre, kind: str, first: int, *, must_be_done: bool) -> None:
    """The scene is that of the edit, made once, or never asked for; and what was done elsewhere is there."""
    theatre.scene.prove()
    ended = statuses(theatre, first)
    done = [i for i, status in ended.items() if status is OperationStatus.SUCCESS]
    assert set(ended.values()) <= {OperationStatus.SUCCESS, OperationStatus.EXCEPTION}
    made = len(done) == 2
    assert len(done) in (1, 2)
    expected = theatre.twin(kind, "elsewhere") if made else theatre.twin("elsewhere")
    assert theatre.scene.objects() == expected
    assert made or not must_be_done


@pytest.mark.parametrize(("backend", "kind", "step", "action"), [*edits_to_end(), *subsets_to_end()])
def test_an_edit_that_ends_anywhere_is_healed(
    theatre: Callable[[str], Theatre], backend: str, kind: str, step: str, action: str
) -> None:
    play = theatre(backend)
    first = newest(play)
    task = {**play.request(kind), "failpoint": f"{step}:{action}"}
    if action == "stop":
        pid = play.stop(**task)
    else:
        assert play.do(**task) == STOPPED_BY[action]
    assert play.do(**play.request("elsewhere")) == DONE
    assert play.do(do="heal") == DONE
    step = step.rstrip("0123456789 ")
    must_be_done = action == "kill" and step in AFTER
    if action == "stop":
        # What had not begun yet begins when the process goes on; what was complete has succeeded.
        assert play.wake(pid) in ((DONE,) if step == "create" else (LOST, DONE) if step in COMPLETE else (LOST,)), (
            play.word_of(pid)
        )
        must_be_done = step in AFTER or step == "create"
    judge(play, kind, first, must_be_done=must_be_done)


@pytest.mark.parametrize(("backend", "kind", "step", "action"), list(recoveries_to_end()))
def test_a_recovery_that_ends_anywhere_is_healed(
    theatre: Callable[[str], Theatre], backend: str, kind: str, step: str, action: str
) -> None:
    play = theatre(backend)
    first = newest(play)
    ends_at = "lock indefinitely" if kind == "merge" else "half switched"
    assert play.do(**play.request(kind), failpoint=f"{ends_at}:kill") == KILLED
    operation = newest(play)
    task = {"do": "recover", "operation": operation, "failpoint": f"{step}:{action}"}
    if action == "stop":
        pid = play.stop(**task)
    else:
        assert play.do(**task) == STOPPED_BY[action], play.said(do="heal")
    assert play.do(**play.request("elsewhere")) == DONE
    assert play.do(do="heal") == DONE
    if action == "stop":
        step = step.rstrip("0123456789 ")
        woken = play.wake(pid)
        assert woken in ((NOTHING, DONE) if step in COMPLETE else (NOTHING,)), play.word_of(pid)
    judge(play, kind, first, must_be_done=True)


def test_the_matrix_is_large_enough() -> None:
    cases = [*edits_to_end(), *subsets_to_end(), *recoveries_to_end()]
    assert len(cases) == len(set(cases)) or len(set(cases)) >= 150
    for backend in BACKENDS:
        assert sum(case[0] == backend for case in cases) >= 60
