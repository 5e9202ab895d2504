"""What a terminal has built or purged is seen in Dagster, once, and without a run."""

from __future__ import annotations

import dagster as dg
import pytest

from sv_pipeline.config import IngestMode
from sv_pipeline.definitions import defs
from sv_pipeline.defs.built import built_in_a_terminal_sensor
from sv_pipeline.ingest import progress
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset

LAYERS = {f"small|L{number:02d}" for number in (2, 3, 4)}
GRAPH_ASSETS = ("watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract", "pyramid")


class Ticks:
    """Evaluates the sensor as the daemon does: events are stored, and the cursor is passed on."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def tick(self) -> list[object]:
        """Evaluate the sensor once; the events that it reported."""
        resources = defs().resources
        with dg.build_sensor_context(instance=self.instance, resources=resources, cursor=self.cursor) as context:
            result = built_in_a_terminal_sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        for request in result.run_requests or []:
            job = defs().resolve_job_def("check_layers_job")
            assert job.execute_in_process(run_config=request.run_config, instance=self.instance).success
        return [*result.asset_events, *(result.run_requests or [])]

    def red(self) -> set[str]:
        """The layers whose check failed when last evaluated."""
        key = dg.AssetCheckKey(dg.AssetKey("layer"), "layer_complete")
        found = self.instance.event_log_storage.get_asset_check_partition_info([key], partition_keys=sorted(LAYERS))
        return {str(info.partition_key) for info in found if info.latest_execution_status.value == "FAILED"}

    def materialized(self, asset: str) -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))


@pytest.fixture
def ticks(dataset: Dataset, instance: dg.DagsterInstance) -> Ticks:
    return Ticks(instance)


def test_what_a_terminal_ingested_is_materialized_once(ticks: Ticks, dataset: Dataset) -> None:
    assert ticks.tick() == []
    ingest(dataset, workers=1)
    assert ticks.tick()
    assert ticks.materialized("layer") == LAYERS
    assert {asset: ticks.materialized(asset) for asset in GRAPH_ASSETS} == {asset: {"small"} for asset in GRAPH_ASSETS}
    for asset in ("fork", "reader_contract"):
        event = ticks.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert str(event.asset_materialization.metadata["view it"].value).endswith(" view small")
    assert [ticks.tick() for _ in range(2)] == [[], []]
    ticks.cursor = None  # as after a reset of the sensor
    assert ticks.tick() == []


def test_a_part_of_an_ingest_is_seen_while_the_rest_is_missing(ticks: Ticks, dataset: Dataset) -> None:
    ingest(dataset, mode=IngestMode.SETUP, workers=1)
    ingest(dataset, layers=[2], workers=1)
    ticks.tick()
    assert ticks.materialized("layer") == {"small|L02"}
    assert ticks.materialized("base_ocdbt") == {"small"}
    assert ticks.materialized("chunked_graph") == set()
    ingest(dataset, workers=1)
    ticks.tick()
    assert ticks.materialized("layer") == LAYERS
    assert ticks.materialized("fork") == {"small"}


def test_a_purge_in_a_terminal_turns_the_check_of_its_layers_red_until_they_are_built_again(
    ticks: Ticks, dataset: Dataset
) -> None:
    ingest(dataset, workers=1)
    ticks.tick()
    progress.purge_layer(dataset.graph, 3)
    for _ in range(2):
        assert ticks.tick()
        assert ticks.red() == {"small|L03", "small|L04"}
        assert ticks.tick() == []
        ingest(dataset, workers=1)
        assert ticks.tick()
        assert ticks.red() == set()
        assert ticks.tick() == []
        progress.purge_layer(dataset.graph, 3)


def test_a_complete_graph_is_not_looked_at_again(
    ticks: Ticks, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(dataset, workers=1)
    ticks.tick()

    def refuse(_: object) -> None:
        raise AssertionError("all done-markers are read")

    monkeypatch.setattr(progress, "layer_status", refuse)
    assert ticks.tick() == []


@pytest.mark.parametrize("mode", [IngestMode.GRAPH, IngestMode.VOXELS])
def test_half_an_ingest_shows_what_its_mode_makes(ticks: Ticks, dataset: Dataset, mode: IngestMode) -> None:
    ingest(dataset, mode=mode, workers=1)
    ticks.tick()
    expected = LAYERS - {"small|L03"} if mode is IngestMode.GRAPH else set()  # the voxels of the populate layer
    assert ticks.materialized("layer") == expected
    other = IngestMode.VOXELS if mode is IngestMode.GRAPH else IngestMode.GRAPH
    ingest(dataset, mode=other, workers=1)
    ticks.tick()
    assert ticks.materialized("layer") == LAYERS
