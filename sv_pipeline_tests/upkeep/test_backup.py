"""A backup that is taken beside edits is a pair of table and fork as of one operation; a restored graph is sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.errors import ConfigError, ConflictError, CorruptionError, NotFoundError
from sv_pipeline.graph.queries import roots
from sv_pipeline.ingest.registration import attach
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.pair import GRAPH, PAIR_ROW
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline.testing.tables import unique_name
from sv_pipeline.testing.worlds import World
from sv_pipeline.upkeep.backup import back_up, backups_in, moment_folder, read_catalogue
from sv_pipeline.upkeep.garbage import clean_up
from sv_pipeline.upkeep.restore import restore
from sv_pipeline.upkeep.retirement import retire
from sv_pipeline_tests.properties import PROFILE
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.upkeep.test_garbage import NONE, ONE, busy

Make = Callable[..., Theatre]
KILLED = -9
SECRET = "https://example.org/hook-that-nobody-may-know"
OF_BACKUP = ("backup cut", "backup manifest", "backup rows", "backup files", "backed up")
OF_RESTORE = (
    "restore claimed",
    "restoring rows",
    "restore rows",
    "restoring files",
    "restore fork",
    "restore identity",
)


@contextmanager
def restored(play: Theatre, place: str, moment: str | None = None, name: str | None = None) -> Iterator[World]:
    """Restore a backup as another graph for the duration of the block, then retire it."""
    registry = Registry(play.scene.world.dataset.home)
    dataset = restore(registry, place, name or unique_name(), moment=moment)
    try:
        yield World(dataset)
    finally:
        retire(registry, dataset.graph_id)


def sound(world: World) -> None:
    """Every check passes; that the base was copied for this test is worth a warning."""
    report = world.report()
    assert report.ok, report.summary()


def assert_as_of(world: World, source: Dataset, place: str, moment: str) -> None:
    """The restored graph is sound, and shows what the original showed after the operations of the backup."""
    sound(world)
    catalogue = read_catalogue(place, source.graph_id, moment)
    there = {one.operation_id: one for one in read_operations(world.graph)}
    wanted = [one for one in read_operations(source.graph) if catalogue.cut.holds(one.operation_id)]
    assert [*there] == [one.operation_id for one in wanted]
    done = [one for one in wanted if one.status is OperationStatus.SUCCESS and one.timestamp is not None]
    assert catalogue.generation is not None
    voxels = np.asarray(world.dataset.fork.open().read().result())
    np.testing.assert_array_equal(voxels, source.fork.open(version=catalogue.generation).read().result())
    supervoxels = np.unique(voxels[voxels > 0])
    # Operations that are not in the backup may be earlier than the last one in it, but concern other objects.
    others = [one for one in read_operations(source.graph) if not catalogue.cut.holds(one.operation_id)]
    last = max(round(one.timestamp.timestamp() * 1000) for one in done if one.timestamp is not None)
    if all(one.timestamp is None or round(one.timestamp.timestamp() * 1000) > last for one in others):
        np.testing.assert_array_equal(roots(world.graph, supervoxels), roots(source.graph, supervoxels, at=last))


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
def test_a_backup_beside_edits_is_a_pair_that_fits(theatre: Make, backend: str, tmp_path: Path) -> None:
    play = theatre(backend)
    source, place = play.scene.world.dataset, str(tmp_path / "backups")
    rounds = 10 if PROFILE == "soak" else 2
    with busy(play, editors=3):
        made = [back_up(source, place) for _ in range(rounds)]
    assert backups_in(place) == {source.graph_id: sorted(one.moment for one in made)}
    assert sum(one.copied_files for one in made) == made[-1].files, "each file is copied once"
    for one in made:
        with restored(play, place, one.moment) as world:
            assert_as_of(world, source, place, one.moment)
            identities = [GRAPH.newest(t.read_rows([PAIR_ROW]).get(PAIR_ROW)) for t in (world.table, source.table)]
            assert len({*identities}) == 2, "it is another graph"
            clean_up(world.dataset, policy=ONE, grace=NONE)
            sound(world)
    play.scene.prove()


def test_a_restored_graph_is_edited_like_any_other(theatre: Make, tmp_path: Path) -> None:
    play = theatre()
    source, place = play.scene.world.dataset, str(tmp_path / "backups")
    assert play.do(**play.request("supervoxel split")) == DONE
    back_up(source, place)
    with restored(play, place) as world:
        graph = [world.dataset.home, world.dataset.graph_id]
        last = max(one.operation_id for one in read_operations(world.graph))
        assert play.do(graph=graph, do="undo", operation=last) == DONE
        assert play.do(graph=graph, **play.request("supervoxel split elsewhere")) == DONE
        assert play.do(graph=graph, **play.request("merge")) == DONE
        sound(world)
        before = world.generation
        world.dataset.fork.open(version=before - 2).read().result()
        assert max(one.operation_id for one in read_operations(source.graph)) == last, "the original is untouched"
        with pytest.raises(ConflictError, match="exists already"):
            restore(Registry(source.home), place, world.dataset.graph_id)
    play.scene.prove()
    graph_id = source.graph_id
    retire(Registry(source.home), graph_id)
    with restored(play, place, name=graph_id) as world:  # under its own id, after it was lost
        sound(world)
        assert world.dataset.config.ocdbt_config == source.config.ocdbt_config


def test_what_cannot_be_restored_is_refused(theatre: Make, tmp_path: Path) -> None:
    play = theatre()
    source, place = play.scene.world.dataset, str(tmp_path / "all my backups")
    registry = Registry(source.home)
    with pytest.raises(NotFoundError, match="no complete backup"):
        restore(registry, place, "other")
    ocdbt = kv.join_url(source.watershed_url, "ocdbt")
    assert source.table.file is not None
    for own in (ocdbt, kv.join_url(ocdbt, source.graph_id), source.home + "/graphs", source.table.file.parent.parent):
        with pytest.raises(ConfigError, match="belongs to the graphs themselves"):
            back_up(source, own)
    raw_config = {**source.config.model_dump(mode="json", by_alias=True), "events": [{"to": "webhook", "url": SECRET}]}
    done = back_up(registry.register(type(source.config).model_validate(raw_config)), place)
    assert SECRET.encode() not in (
        kv.read_bytes(moment_folder(place, source.graph_id, done.moment), "backup.json") or b""
    )
    with pytest.raises(ConflictError, match="exists already"):
        restore(registry, place, source.graph_id)
    Fork(source.watershed_url, "forked").create()
    with pytest.raises(ConflictError, match="has a fork at"):
        restore(registry, place, "forked")
    with pytest.raises(NotFoundError, match=f"of graph 'no'. It has backups of {source.graph_id}."):
        restore(registry, place, "other", graph_id="no")
    stage = play.stage.world.dataset
    task = {"do": "restore", "place": place, "graph": [stage.home, stage.graph_id], "target": [source.home, "killed"]}
    assert play.do(**task, failpoint="restore claimed:kill") == KILLED
    with pytest.raises(ConflictError, match="is incomplete: it is being restored"):
        attach(source.config.model_copy(update={"graph_id": "killed"}), source.home)
    fork = Fork(source.watershed_url, "killed")
    fork.create()
    with pytest.raises(ConflictError, match="which was made while"):
        restore(registry, place, "killed")
    assert not fork.has_commits()
    fork.remove(force=True)
    newer = back_up(source, place)
    with pytest.raises(ConflictError, match=f"--moment {done.moment}"):
        restore(registry, place, "killed")
    restore(registry, place, "killed", moment=done.moment)
    retire(registry, "killed")
    done = newer
    folder = moment_folder(place, source.graph_id, done.moment)
    rows = kv.read_bytes(folder, "rows-000000.zst")
    assert rows is not None
    kv.write_bytes(folder, "rows-000000.zst", rows[:-1] + b"?")
    with pytest.raises(CorruptionError, match="is not the file that was written"):
        restore(registry, place, "other")
    kv.write_bytes(folder, "rows-000000.zst", rows)
    raw = kv.read_bytes(folder, "backup.json")
    assert raw is not None
    kv.write_bytes(folder, "backup.json", json.dumps({**json.loads(raw), "format": 2}).encode())
    with pytest.raises(ConfigError, match="has format 2, not 1"):
        restore(registry, place, "other")
    kv.write_bytes(folder, "backup.json", raw)
    data = kv.join_url(place, source.graph_id, "files")
    name = json.loads(raw)["files"][0][0]
    content = kv.read_bytes(data, name)
    assert content is not None
    kv.write_bytes(data, name, content[:-1])
    with pytest.raises(CorruptionError, match=f"has {len(content) - 1} bytes instead of {len(content)}"):
        restore(registry, place, "other")
    assert back_up(source, place).copied_files == 1, "it is copied again"
    restore(registry, place, "other", moment=done.moment)
    retire(registry, "other")
    assert play.do(**play.request("supervoxel split"), failpoint="voxels written:kill") == KILLED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sv_pipeline.upkeep.cut.PATIENCE", 0.5)
        with pytest.raises(ConflictError, match="between their voxels and their end"):
            back_up(source, place)


@pytest.mark.timeout(1800 if PROFILE == "soak" else 300)
@pytest.mark.parametrize(("backend", "where"), [("sqlite", "gs"), ("bigtable", "file")])
def test_killed_backups_and_restores_are_completed_by_the_next(
    theatre: Make, backend: str, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place, bucket = str(tmp_path / "backups"), None
    if where == "gs":
        server: GcsControl = request.getfixturevalue("gcs_server")
        place, bucket = server.new_bucket(), server.new_bucket()
    play = theatre(backend, bucket=bucket)
    source = play.scene.world.dataset
    all_of_them = PROFILE == "soak"
    with busy(play, editors=3 if all_of_them else 1):
        for step in OF_BACKUP if all_of_them else ("backup rows", "backup files"):
            assert play.do(do="back up", place=place, failpoint=f"{step}:kill") == KILLED
            code, said = play.said(do="back up", place=place)
            assert code == DONE, said
    moment = json.loads(said)["moment"]
    stage = play.stage.world.dataset
    name = unique_name()
    task = {"do": "restore", "place": place, "moment": moment, "graph": [stage.home, stage.graph_id]}
    task["target"] = [source.home, name]
    for step in OF_RESTORE if all_of_them else ("restoring rows", "restoring files", "restore fork"):
        assert play.do(**task, failpoint=f"{step}:kill") == KILLED, step
        assert name not in Registry(source.home).graph_ids()
    assert play.do(**task, failpoint="restore registered:kill") == KILLED
    assert play.do(**task) == DONE
    with pytest.raises(ConflictError, match="exists already"):
        restore(Registry(source.home), place, name, moment=moment)
    assert_as_of(World(Registry(source.home).get(name)), source, place, moment)
    retire(Registry(source.home), name)
    play.scene.prove()
