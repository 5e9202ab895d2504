"""A supervoxel split by other software whose log row names no chunks: the chunks that it holds are its scope."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sv_pipeline.recovery import RecoveryStoppedError, recover
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.test_their_dead import KILLED, both, found_theirs, theirs
from sv_pipeline_tests.recovery.test_their_dead import old as old

Make = Callable[..., Theatre]
STEPS = ["chunks locked", "locked", "voxels", "supervoxels:0.2", "supervoxels:0.5", "supervoxels:1.0", "rows:0.5"]


@both
@pytest.mark.parametrize("step", [*STEPS, "rows:1.0"])
def test_it_is_rolled_back_and_made_again(theatre: Make, backend: str, step: str, old: None) -> None:
    play = theatre(backend)
    assert theirs(play, "supervoxel split", die=step, seed=len(step), scope=False) == KILLED
    (one,) = found_theirs(play)
    assert one.outlook == "recover"
    assert one.scope is not None
    assert one.scope.chunks
    report = recover(play.scene.graph, one.operation_id)
    assert report.replay.outcome == "replayed", report
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")
    assert not found_theirs(play)


@pytest.mark.parametrize("step", ["voxels", "supervoxels:0.5", "rows:0.0", "rows:0.5", "rows:1.0"])
def test_without_locks_of_chunks_it_is_refused_and_nothing_is_changed(theatre: Make, step: str, old: None) -> None:
    """Others may have edited voxels of the same chunks since, so nobody can say which voxels are its own."""
    play = theatre()
    how = {"scope": False, "chunk_locks": False}
    assert theirs(play, "supervoxel split", die=step, seed=3, **how) == KILLED
    before, voxels = play.scene.rows(), play.scene.world.voxels()
    faults = {r.name for r in verify(play.scene.table, play.scene.graph.fork).results if not r.passed}
    (one,) = found_theirs(play)
    with pytest.raises(RecoveryStoppedError, match="does not name the chunks"):
        recover(play.scene.graph, one.operation_id)
    said = dry_run(play.scene.graph, one.operation_id).to_dict()
    assert "does not name the chunks" in str(said)
    assert play.scene.rows() == before
    assert (play.scene.world.voxels() == voxels).all()
    assert {r.name for r in verify(play.scene.table, play.scene.graph.fork).results if not r.passed} == faults
