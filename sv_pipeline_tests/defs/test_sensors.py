"""Registered graphs and their layers are partitions, and nothing else is; sensors say what they looked at."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from sv_pipeline.definitions import defs
from sv_pipeline.defs.partitions import add_partitions
from sv_pipeline.defs.sensors import registered_graphs_sensor
from sv_pipeline.registry import Dataset
from sv_pipeline_tests.defs.test_assets import failure_of, run_asset

LAYERS = [f"small|L{number:02d}" for number in (2, 3, 4)]


class Ticks:
    """Evaluates the sensor as the daemon does: requests are carried out, and the cursor is passed on."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None
        self.said = ""

    def tick(self) -> dict[str, list[str]]:
        """Evaluate the sensor once; what it asked for."""
        context = dg.build_sensor_context(instance=self.instance, resources=defs().resources, cursor=self.cursor)
        with context:
            result = registered_graphs_sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor, self.said = result.cursor, str(result.skip_reason)
        asked: dict[str, list[str]] = {}
        for request in result.dynamic_partitions_requests or ():
            name, keys = request.partitions_def_name, list(request.partition_keys)
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(name, keys)
                asked[f"add {name}"] = keys
            else:
                for key in keys:
                    self.instance.delete_dynamic_partition(name, key)
                asked[f"delete {name}"] = keys
        return asked


@pytest.fixture
def ticks(instance: dg.DagsterInstance) -> Ticks:
    return Ticks(instance)


def test_registered_graphs_and_their_layers_become_partitions(dataset: Dataset, ticks: Ticks) -> None:
    assert ticks.tick() == {"add graphs": ["small"], "add graph_layers": LAYERS}
    assert json.loads(ticks.cursor or "") == {"small": "layers 2 to 4"}
    assert ticks.tick() == {}
    assert "1 registered graphs" in ticks.said
    assert "small (layers 2 to 4)" in ticks.said


def test_partitions_that_no_graph_has_are_removed(dataset: Dataset, ticks: Ticks) -> None:
    """Those of graphs that are gone, and those that somebody typed; also in a home folder without any graph."""
    (Path(dataset.home) / "graphs" / "small.json").rename(away := Path(dataset.home) / "away.json")
    ticks.instance.add_dynamic_partitions("graphs", ["typed"])
    assert ticks.tick() == {"delete graphs": ["typed"]}
    away.rename(Path(dataset.home) / "graphs" / "small.json")
    ticks.tick()
    typed = ["other|L02", "small|L05", "small|x", "small2|L02"]
    ticks.instance.add_dynamic_partitions("graphs", ["other"])
    ticks.instance.add_dynamic_partitions("graph_layers", typed)
    assert ticks.tick() == {"delete graphs": ["other"], "delete graph_layers": sorted(typed)}
    assert "removed" in ticks.said


def test_partitions_of_which_something_is_known_stay_if_the_home_folder_is_empty(
    dataset: Dataset, ticks: Ticks
) -> None:
    ticks.tick()
    for asset, key in (("watershed", "small"), ("layer", LAYERS[0])):
        ticks.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=key))
    (Path(dataset.home) / "graphs" / "small.json").unlink()
    assert ticks.tick() == {"delete graph_layers": LAYERS[1:]}, "the home folder may be a wrong one"


def test_layers_of_a_graph_that_cannot_be_read_stay(dataset: Dataset, ticks: Ticks) -> None:
    ticks.tick()
    ticks.cursor = None
    (Path(dataset.home) / "graphs" / "small.json").write_text("{}")
    assert ticks.tick() == {}
    assert "does not hold the configuration" in ticks.said


def test_a_run_of_a_layer_that_somebody_typed_says_what_there_is(
    dataset: Dataset, instance: dg.DagsterInstance
) -> None:
    add_partitions(instance, [dataset])
    instance.add_dynamic_partitions("graph_layers", ["small|L09"])
    result = run_asset(instance, "layer", "small|L09")
    assert not result.success
    assert "it has layers 2 to 4" in failure_of(result)


def test_every_sensor_and_schedule_says_what_it_is_for(home: str) -> None:
    loaded = defs()
    for each in [*(loaded.sensors or []), *(loaded.schedules or [])]:
        assert each.description, each.name  # type: ignore[union-attr]
