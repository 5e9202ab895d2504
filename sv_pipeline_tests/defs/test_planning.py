"""The forecast of an ingest in Dagster, and a chunk that is written again."""

from __future__ import annotations

import dagster as dg

from sv_pipeline.definitions import defs
from sv_pipeline.defs.launch import materialize_graph
from sv_pipeline.ingest import planning
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.defs.test_assets import event_of, failure_of, run_asset


def options(**config: object) -> dict[str, object]:
    return {"ops": {"ingest_plan": {"config": config}}}


def test_the_plan_is_an_asset_that_builds_nothing(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("graphs", [dataset.graph_id])
    assert run_asset(instance, "ingest_plan", dataset.graph_id, options(workers=3, prices={"worker-hour": 2.0})).success
    metadata = event_of(instance, "ingest_plan", dataset.graph_id).metadata
    assert metadata["chunks"].value == "18 / 4 / 1"
    assert metadata["workers"].value == 3
    assert isinstance(metadata["cost_worker_hour"].value, float)
    assert not dataset.table.exists()
    assert planning.kept_forecast(dataset) is None


def test_a_sampled_plan_is_kept_for_the_ingest(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("graphs", [dataset.graph_id])
    assert run_asset(instance, "ingest_plan", dataset.graph_id, options(sample=3)).success
    kept = planning.kept_forecast(dataset)
    assert kept is not None
    assert kept.sample is not None
    assert kept.sample.chunks == 3
    result = run_asset(instance, "ingest_plan", dataset.graph_id, options(sample=19))
    assert "a sample of 19 chunks is larger than the volume" in failure_of(result)
    assert "ingest_plan" in {s.key.to_user_string() for s in defs().resolve_all_asset_specs()}


def test_a_layer_shows_its_prediction_beside_what_happened(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    materialize_graph(defs().resolve_implicit_global_asset_job_def(), dataset, instance)
    metadata = event_of(instance, "layer", f"{dataset.graph_id}|L02").metadata
    assert metadata["predicted_chunks"].value == metadata["actual_chunks"].value == 18
    assert isinstance(metadata["predicted_seconds_of_work"].value, float)
    assert isinstance(metadata["actual_seconds_of_work"].value, float)


def test_a_chunk_is_written_again_by_a_job(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    ingest(dataset)
    job = defs().resolve_job_def("requeue_chunk_job")

    def run(**config: object) -> dg.ExecuteInProcessResult:
        given = {"ops": {"write_chunk": {"config": {"graph_id": dataset.graph_id, **config}}}}
        return job.execute_in_process(instance=instance, run_config=given, raise_on_error=False)

    assert run(layer=3, chunk=[0, 1, 0]).success
    assert "has no chunk (0, 9, 0)" in failure_of(run(layer=3, chunk=[0, 9, 0]))
    assert "three numbers" in failure_of(run(layer=3, chunk=[0, 9]))
    assert verify_dataset(dataset).ok
