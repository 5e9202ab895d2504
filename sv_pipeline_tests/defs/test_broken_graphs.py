"""A graph that cannot be read is named, and hides no other graph from sensors and checks."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from sv_pipeline.defs.partitions import add_partitions
from sv_pipeline.ingest import progress
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset, Registry, ask_every_graph
from sv_pipeline_tests.defs.test_assets import every_asset
from sv_pipeline_tests.defs.test_built import LAYERS, Ticks

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@pytest.fixture
def broken(dataset: Dataset) -> str:
    """The id of a graph beside the complete one, whose registered configuration is damaged."""
    ingest(dataset, workers=1)
    (Path(dataset.home) / "graphs" / "broken.json").write_text("{}")
    return "broken"


def check_of_layers(instance: dg.DagsterInstance, **run: object) -> dg.AssetCheckEvaluation:
    """Evaluate the check of layers alone, as a person does in the UI."""
    key = dg.AssetCheckKey(dg.AssetKey("layer"), "layer_complete")
    job = every_asset().get_subset(asset_selection=set(), asset_check_selection={key})
    result = job.execute_in_process(
        instance=instance,
        run_config={"execution": {"config": {"in_process": {}}}},
        raise_on_error=False,
        **run,  # type: ignore[arg-type]
    )
    (evaluation,) = [each for each in result.get_asset_check_evaluations() if each.check_name == key.name]
    return evaluation


@pytest.mark.parametrize("error", [KeyError("gone"), RuntimeError("https://user:secret@host/"), TypeError("None")])
def test_an_unexpected_error_of_one_graph_is_its_answer(dataset: Dataset, error: Exception) -> None:
    def ask(_: Registry, graph_id: str) -> str:
        if graph_id == "other":
            raise error
        return "fine"

    answers = ask_every_graph(Registry(dataset.home), ask, ["other", dataset.graph_id])
    assert answers[dataset.graph_id] == "fine"
    assert answers["other"].startswith(type(error).__name__)
    assert "secret" not in answers["other"]


def test_the_sensor_of_built_graphs_goes_on_beside_a_broken_one(broken: str, instance: dg.DagsterInstance) -> None:
    ticks = Ticks(instance)
    assert ticks.tick()
    assert ticks.materialized("layer") == LAYERS
    assert ticks.tick() == []


def test_the_check_of_layers_concerns_the_layers_of_its_run(
    broken: str, dataset: Dataset, instance: dg.DagsterInstance
) -> None:
    add_partitions(instance, [dataset])
    of_range = dict(zip(RANGE, sorted(LAYERS)[::2], strict=True))
    assert check_of_layers(instance, tags=of_range).passed, "another graph is broken, not this one"
    assert check_of_layers(instance, tags={"dagster/partition": "small|L03"}).passed
    of_all = check_of_layers(instance)
    assert not of_all.passed
    assert "broken.json" in str(of_all.description)
    progress.purge_layer(dataset.graph, 3)
    assert check_of_layers(instance, tags={"dagster/partition": "small|L02"}).passed
    assert not check_of_layers(instance, tags={"dagster/partition": "small|L03"}).passed, (
        "nothing is left of this layer"
    )
    assert not check_of_layers(instance, tags=of_range).passed
