"""A graph can be removed, completely or not at all, and its base when no graph reads it any more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from sv_pipeline.cli.main import cli
from sv_pipeline.errors import ConfigError, ConflictError, NotFoundError
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.planning import keep_if_absent
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.stages import run_batch
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.registry import Registry
from sv_pipeline.segmentation.fork.contract import published_folder
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.presence import building, removing
from sv_pipeline.table import open_table
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline.upkeep.garbage import clean_up
from sv_pipeline.upkeep.retirement import plan_retirement, retire
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.upkeep.test_garbage import NONE, ONE

Make = Callable[..., Theatre]
KILLED = -9


def assert_gone(play: Theatre) -> None:
    """Nothing of the graph is left, and its id can be used again."""
    dataset = play.scene.world.dataset
    assert kv.list_keys(ocdbt.fork_folder(dataset.watershed_url, dataset.graph_id)) == []
    assert kv.list_keys(published_folder(dataset.watershed_url, dataset.graph_id)) == []
    assert dataset.graph_id not in dataset.base.forks()
    assert not open_table(dataset.config, dataset.home).exists()
    assert kv.list_keys(kv.as_url(dataset.home) + "graphs/") == []
    assert kv.list_keys(kv.as_url(dataset.home) + "forecasts/") == []
    folder = Path(dataset.home) / "tables"
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_graph_is_listed_then_removed_and_its_base_after_it(theatre: Make) -> None:
    play = theatre()
    dataset = play.scene.world.dataset
    registry, graph_id, url = Registry(dataset.home), dataset.graph_id, dataset.watershed_url
    Fork(url, "another").create()
    keep_if_absent(dataset)
    run = CliRunner()
    command = ["--home", dataset.home, "retire", graph_id]
    listed = run.invoke(cli, command, catch_exceptions=False).output
    assert "Nothing was removed" in listed
    assert "1 other forks read it" in listed
    assert Registry(dataset.home).graph_ids() == [graph_id]
    with pytest.raises(ConflictError, match=f"belongs to the graphs {graph_id}"):
        run.invoke(cli, ["--home", dataset.home, "retire-base", url], catch_exceptions=False)
    said = json.loads(run.invoke(cli, [*command, "--apply", "--json"], catch_exceptions=False).output)
    assert said["removed"]
    assert said["fork_files"] > 1
    assert said["table_bytes"] > 0
    assert_gone(play)
    with pytest.raises(NotFoundError, match="is not known"):
        plan_retirement(registry, graph_id)

    base = ["--home", dataset.home, "retire-base", url]
    with pytest.raises(ConflictError, match="in use by the forks another"):
        run.invoke(cli, base, catch_exceptions=False)
    Fork(url, "another").open().read().result()
    kv.delete_key(ocdbt.ocdbt_folder(url), ".forks/another")  # as for a fork of other software
    with pytest.raises(ConflictError, match="in use by the forks another"):
        run.invoke(cli, [*base, "--apply"], catch_exceptions=False)
    Fork(url, "another").remove(force=True)
    assert "Nothing was removed" in run.invoke(cli, base, catch_exceptions=False).output
    assert "removed." in run.invoke(cli, [*base, "--apply"], catch_exceptions=False).output
    assert kv.list_keys(ocdbt.ocdbt_folder(url)) == []
    assert kv.read_bytes(url, "info") is not None, "the watershed stays"
    with pytest.raises(NotFoundError, match="there is no base"):
        run.invoke(cli, base, catch_exceptions=False)


def test_a_graph_that_is_being_built_stays_and_one_that_is_being_retired_is_not_built(theatre: Make) -> None:
    play = theatre()
    dataset = play.scene.world.dataset
    registry, graph_id = Registry(dataset.home), dataset.graph_id
    batch = Batch(Stage.GRAPH, 2, 0, 1)
    with building(dataset.home, graph_id):
        for ask in (plan_retirement, retire):
            with pytest.raises(ConflictError, match=f"is being built by process {os.getpid()}.*Wait until its ingest"):
                ask(registry, graph_id)
        run_batch(dataset, batch)  # as further workers do
    assert registry.graph_ids() == [graph_id]
    with removing(dataset.home, graph_id):
        for build in (lambda: run_batch(dataset, batch), lambda: ingest(dataset)):
            with pytest.raises(ConflictError, match="is being retired, so it cannot be built"):
                build()
    ingest(dataset, workers=1)
    retire(registry, graph_id)
    assert_gone(play)
    assert list((Path(dataset.home) / "graphs").iterdir()) == []


def test_a_graph_with_an_unfinished_operation_stays(theatre: Make) -> None:
    play = theatre()
    dataset = play.scene.world.dataset
    registry = Registry(dataset.home)
    assert play.do(**play.request("supervoxel split"), failpoint="voxels written:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    for call in (plan_retirement, retire):
        with pytest.raises(ConflictError, match=rf"1 unfinished operations \({one.id}\)"):
            call(registry, dataset.graph_id)
    registry.begin_retiring(dataset.graph_id)  # killed thereafter
    with pytest.raises(ConflictError, match=rf"1 unfinished operations \({one.id}\)"):
        retire(registry, dataset.graph_id)
    assert registry.graph_ids() == [dataset.graph_id], "it can be recovered"
    assert play.do(do="recover", operation=one.id) == DONE
    play.scene.prove()
    assert play.do(**play.request("supervoxel split elsewhere"), failpoint="voxels written:kill") == KILLED
    registry.begin_retiring(dataset.graph_id).fork.remove(force=True)
    retire(registry, dataset.graph_id)  # nothing can be recovered any more
    assert_gone(play)


def test_a_graph_whose_table_is_read_only_is_neither_removed_nor_cleaned_up(theatre: Make) -> None:
    play = theatre()
    dataset = play.scene.world.dataset
    registry = Registry(dataset.home)
    assert play.do(**play.request("supervoxel split")) == DONE
    raw = dataset.config.model_dump(mode="json", by_alias=True)
    raw["backend_client"]["CONFIG"]["READ_ONLY"] = True
    changed = registry.register(type(dataset.config).model_validate(raw))
    with pytest.raises(ConfigError, match="read-only"):
        retire(registry, dataset.graph_id)
    report = clean_up(changed, policy=ONE, grace=NONE)
    assert report.pruned is not None
    assert report.collected is not None
    assert report.pruned.removed == report.collected.files == 0
    assert "read-only" in report.pruned.why_not
    play.scene.prove()
    registry.register(dataset.config)
    assert not plan_retirement(registry, dataset.graph_id).warning
    dataset.table.drop()
    assert "may be in use elsewhere" in "\n".join(plan_retirement(registry, dataset.graph_id).lines())


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
def test_a_killed_retirement_is_completed_by_the_next(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    dataset, registry = play.scene.world.dataset, Registry(play.scene.world.dataset.home)
    stage = play.stage.world.dataset
    task = {"do": "retire", "target": [dataset.home, dataset.graph_id], "graph": [stage.home, stage.graph_id]}
    assert play.do(**task, failpoint="retire noted:kill") == KILLED
    assert registry.graph_ids() == [dataset.graph_id], "nothing is removed of a graph that is shown"
    for step in ("retire marked", "retire fork", "retire table"):
        assert play.do(**task, failpoint=f"{step}:kill") == KILLED
        assert registry.graph_ids() == []
        for call in (registry.get, lambda _: registry.check(dataset.config)):
            with pytest.raises(ConflictError, match="is being retired"):
                call(dataset.graph_id)
    assert play.do(**task, failpoint="retired:kill") == KILLED
    assert_gone(play)
    registry.check(dataset.config)
    play.stage.world.dataset.fork.open().read().result()
