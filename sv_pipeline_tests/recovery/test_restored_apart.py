"""A table and a fork of different days are named, and nobody writes to either; a pair of one day goes on."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sv_pipeline import edits
from sv_pipeline.operations import writing
from sv_pipeline.operations.ownership import OPEN_PREFIX
from sv_pipeline.operations.pair import PAIR_ROW
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.segmentation.fork.records import NEWEST, operation_key
from sv_pipeline.table.interface import DeleteCells, RowMutation, SetCell
from sv_pipeline.testing.harness.actors import BROKEN, DONE, REFUSED, STOPPED
from sv_pipeline.testing.tables import EVERYTHING, but_operations
from sv_pipeline.verify.report import CheckResult
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.seen import opened
from sv_pipeline_tests.recovery.stage import Scene

KILLED = -9
both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
Make = Callable[..., Theatre]


@dataclass
class Day:
    """A backup of a table and of its fork."""

    rows: list[RowMutation]
    fork: Path


def fork_folder(scene: Scene) -> Path:
    graph = scene.graph
    return Path(graph.watershed_url.removeprefix("file://")) / "ocdbt" / graph.graph_id


def backup(scene: Scene) -> Day:
    kept = scene.folder / f"backup {uuid.uuid4().hex}"
    shutil.copytree(fork_folder(scene), kept)
    rows = [
        RowMutation(key, [SetCell(column, c.value, c.timestamp) for column, cells in row.items() for c in cells])
        for key, row in scene.table.scan([EVERYTHING])
    ]
    return Day(rows, kept)


def restore(scene: Scene, *, table: Day | None = None, fork: Day | None = None) -> None:
    folder = fork_folder(scene)
    if table is not None:
        scene.table.drop()
        scene.table.create()
        scene.table.mutate(table.rows)
    if fork is not None:
        shutil.rmtree(folder)
        shutil.copytree(fork.fork, folder)


def pair_check(scene: Scene) -> CheckResult:
    graph = scene.graph
    report = verify(scene.table, graph.fork, checks=["pair"])
    return report["pair"]


def generation(scene: Scene) -> int:
    return scene.graph.fork.generation()


def but_the_log(scene: Scene) -> dict[bytes, object]:
    """All rows that a refused edit must leave as they are."""
    return {**but_operations(scene.rows())}


@both
@pytest.mark.parametrize("older", ["table", "fork"])
@pytest.mark.parametrize("kind", ["merge", "supervoxel split elsewhere", "undo of a supervoxel split"])
def test_an_edit_on_days_that_differ_is_refused(theatre: Make, backend: str, older: str, kind: str) -> None:
    play = theatre(backend)
    first = backup(play.scene)
    assert play.do(**play.request("supervoxel split")) == DONE
    second = backup(play.scene)
    assert pair_check(play.scene).passed
    restore(play.scene, table=first if older == "table" else None, fork=first if older == "fork" else None)
    before, at = but_the_log(play.scene), generation(play.scene)
    code, said = play.said(**play.request(kind))
    assert code == REFUSED
    assert f"the {older} of graph" in said
    assert "is older than its" in said
    assert "Restore" in said
    assert (but_the_log(play.scene), generation(play.scene)) == (before, at)
    (finding,) = pair_check(play.scene).errors
    assert f"the {older} is older than the" in finding.message
    restore(play.scene, table=second, fork=second)
    assert play.do(**play.request(kind)) == DONE
    play.scene.prove()


@both
@pytest.mark.parametrize("older", ["table", "fork"])
def test_the_pair_is_compared_before_points_are_blamed(theatre: Make, backend: str, older: str) -> None:
    """Points far outside, on nothing, and an operation that is not there: none of these is what is wrong."""
    play = theatre(backend)
    scene = play.scene
    first = backup(scene)
    assert play.do(**play.request("supervoxel split")) == DONE
    restore(scene, table=first if older == "table" else None, fork=first if older == "fork" else None)
    request = play.request("merge")
    graph, nowhere = scene.graph, edits.Points.of(coordinates=[[10**6, 0, 0]])
    volume = graph.fork.open()
    attempts: list[Callable[[], object]] = [
        lambda: edits.split(graph, edits.SplitRequest("me", nowhere, nowhere), volume=volume),
        lambda: edits.merge(graph, edits.MergeRequest("me", edits.Points.of([]), nowhere), volume=volume),
        lambda: edits.undo(graph, 10**6, "me"),
        # Previews are refused as well where their points could be found.
        lambda: opened(play).preview_split(request["source"], request["sink"]),
        lambda: opened(play).preview_merge(request["source"], request["sink"]),
    ]
    for attempt in attempts:
        with pytest.raises(edits.EditRefused, match=f"the {older} of graph .* is older than its") as refused:
            attempt()
        assert refused.value.reason is edits.Reason.RESTORED_APART


@both
@pytest.mark.parametrize("point", ["new rows written", "voxels written", "half switched"])
def test_recovery_leaves_a_record_alone_whose_number_alone_is_its_own(theatre: Make, backend: str, point: str) -> None:
    """Two lines of history from one day, with equal numbers; the table of one, the fork of the other."""
    play = theatre(backend)
    scene = play.scene
    first = backup(scene)
    assert play.do(**play.request("supervoxel split")) == DONE
    one = backup(scene)
    restore(scene, table=first, fork=first)
    assert play.do(**play.request("supervoxel split elsewhere"), failpoint=f"{point}:kill") == KILLED
    other = backup(scene)
    (stuck,) = find_unfinished(scene.graph)
    restore(scene, fork=one)
    assert stuck.operation_id in {r.operation_id for r in scene.graph.fork.records()}
    before, opened, at = scene.rows(), scene.open_rows(), generation(scene)
    code, said = play.said(do="recover", operation=stuck.operation_id)
    assert code == STOPPED
    assert f"under the number {stuck.operation_id} that another operation has changed" in said
    assert "Nothing was changed." in said
    assert (scene.rows(), scene.open_rows(), generation(scene)) == (before, opened, at)
    assert play.do(**play.request("merge")) == REFUSED
    assert generation(scene) == at
    assert not pair_check(scene).passed
    restore(scene, table=other, fork=other)
    assert play.do(do="recover", operation=stuck.operation_id) == DONE
    scene.prove()
    assert scene.objects() == play.twin("supervoxel split elsewhere")


@both
def test_an_undo_of_a_number_that_another_operation_has(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    scene = play.scene
    first = backup(scene)
    code, said = play.said(**play.request("supervoxel split"))
    assert code == DONE
    one = backup(scene)
    restore(scene, table=first, fork=first)
    assert play.do(**play.request("supervoxel split elsewhere")) == DONE
    restore(scene, fork=one)
    before = but_the_log(scene)
    code, said = play.said(do="undo", operation=json.loads(said)["operation"])
    assert code == REFUSED
    assert "do not belong together" in said
    assert but_the_log(scene) == before
    (finding,) = pair_check(scene).errors
    assert "another operation under this number" in finding.message


def test_a_record_that_was_exchanged_below_the_newest_one(theatre: Make) -> None:
    """Only the newest operations are compared at each edit: what an undo puts back is compared by itself."""
    play = theatre("sqlite")
    scene = play.scene
    graph = scene.graph
    _, said = play.said(**play.request("supervoxel split"))
    number = json.loads(said)["operation"]
    assert play.do(**play.request("supervoxel split elsewhere")) == DONE
    store = graph.fork.store()
    record = json.loads(store.kv[operation_key(number)])
    store.kv[operation_key(number)] = json.dumps({**record, "identity": "another"}).encode()
    before = but_the_log(scene)
    code, said = play.said(do="undo", operation=number)
    assert code == BROKEN
    assert "of another operation than the one" in said
    assert but_the_log(scene) == before
    assert not scene.open_rows()
    assert f"operation {number}" in str(pair_check(scene).errors[0])


@both
def test_graphs_of_older_versions_know_no_identities_and_go_on(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    scene = play.scene
    assert play.do(**play.request("supervoxel split")) == DONE
    forget_identities(scene)
    assert pair_check(scene).passed
    assert play.do(**play.request("merge")) == DONE
    assert play.do(**play.request("undo of a supervoxel split")) == DONE
    assert play.do(**play.request("supervoxel split elsewhere"), failpoint="voxels written:kill") == KILLED
    forget_identities(scene)
    (stuck,) = find_unfinished(scene.graph)
    assert play.do(do="recover", operation=stuck.operation_id) == DONE
    assert pair_check(scene).passed
    assert play.scene.table.read_rows([PAIR_ROW])
    scene.prove()


@both
def test_an_older_version_repeated_a_number(theatre: Make, backend: str) -> None:
    """Without identities, the time of the attempt tells whose the voxels are."""
    play = theatre(backend)
    scene = play.scene
    first = backup(scene)
    assert play.do(**play.request("supervoxel split")) == DONE
    forget_identities(scene)
    one = backup(scene)
    restore(scene, table=first, fork=first)
    assert play.do(**play.request("supervoxel split elsewhere"), failpoint="new rows written:kill") == KILLED
    restore(scene, fork=one)
    forget_identities(scene)
    (stuck,) = find_unfinished(scene.graph)
    before, at = scene.rows(), generation(scene)
    code, said = play.said(do="recover", operation=stuck.operation_id)
    assert code == STOPPED
    assert "another operation has changed" in said
    assert (scene.rows(), generation(scene)) == (before, at)


def forget_identities(scene: Scene) -> None:
    """What an older version would have written."""
    own = [key for key, _ in scene.table.scan([EVERYTHING]) if key.startswith((writing.OWN_PREFIX, OPEN_PREFIX))]
    scene.table.mutate([RowMutation(PAIR_ROW, [DeleteCells()])])
    scene.table.mutate([RowMutation(key, [DeleteCells(writing.IDENTITY.key)]) for key in own])
    graph = scene.graph
    store = graph.fork.store()
    with store.transaction() as transaction:
        kv = store.kv.with_transaction(transaction)
        for record in graph.fork.records():
            key = operation_key(record.operation_id)
            content = json.loads(store.kv[key])
            content.pop("identity", None)
            kv[key] = json.dumps(content).encode()
        kv.write(NEWEST, None).result()
