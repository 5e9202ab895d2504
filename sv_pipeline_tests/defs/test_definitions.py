from __future__ import annotations

import subprocess
import sys

from sv_pipeline.definitions import defs
from sv_pipeline.defs.partitions import graph_layers, graphs
from sv_pipeline.verify.run import CHECKS
from sv_pipeline_tests.defs.dev_server import PROJECT


def test_loading_them_warns_of_nothing() -> None:
    command = "from sv_pipeline.definitions import defs; defs().get_repository_def()"
    subprocess.run([sys.executable, "-W", "error", "-c", command], check=True, cwd=PROJECT)


def test_the_names_that_users_and_links_rely_on(home: str) -> None:
    loaded = defs()
    specs = {spec.key.to_user_string(): spec for spec in loaded.resolve_all_asset_specs()}
    assets = {"base_ocdbt", "chunked_graph", "fork", "fork_files", "ingest_plan", "layer", "pyramid"}
    assert set(specs) == assets | {"reader_contract", "watershed"}
    jobs = {"register_graph_job", "purge_layer_job", "verify_job", "downsample_job", "rebuild_mip_job"}
    jobs |= {"requeue_chunk_job", "collect_garbage_job", "retire_graph_job", "backup_job"}
    jobs |= {"split_job", "preview_split_job", "merge_job", "undo_job", "redo_job", "recover_operation_job"}
    assert jobs <= {job.name for job in loaded.resolve_all_job_defs()}
    sensors = {"registered_graphs_sensor", "downsample_sensor", "stuck_operations_sensor"}
    sensors |= {"dead_recoveries_sensor"}
    assert sensors <= {sensor.name for sensor in loaded.sensors or []}


def test_lineage_leads_from_the_segmentation_to_the_readers(home: str) -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs().resolve_all_asset_specs()}
    upstream = {name: sorted(d.asset_key.to_user_string() for d in spec.deps) for name, spec in specs.items()}
    assert upstream == {
        "ingest_plan": [],
        "watershed": [],
        "base_ocdbt": ["watershed"],
        "chunked_graph": ["base_ocdbt"],
        "layer": ["base_ocdbt"],
        "fork": ["base_ocdbt", "chunked_graph"],
        "fork_files": ["fork"],
        "pyramid": ["fork"],
        "reader_contract": ["fork"],
    }


def test_every_invariant_is_an_asset_check_with_a_description(home: str) -> None:
    checks = {key.name for key in defs().resolve_asset_graph().asset_check_keys}
    assert set(CHECKS) <= checks


def test_every_asset_tells_what_it_is(home: str) -> None:
    for spec in defs().resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.owners, spec.key


def test_a_graph_is_built_in_one_run_and_its_layers_are_partitions(home: str) -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs().resolve_all_asset_specs()}
    one_run = ("watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract")
    assert {specs[name].partitions_def for name in one_run} == {graphs}
    assert specs["layer"].partitions_def == graph_layers
