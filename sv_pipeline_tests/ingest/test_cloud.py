"""The same ingest in the cloud: voxels, edges and home in a bucket, the table in Bigtable (test server, emulator)."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.config import parse_config
from sv_pipeline.errors import UnavailableError
from sv_pipeline.ingest import planning, progress, stages
from sv_pipeline.ingest.pool import ALONE_VARIABLE
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.scratch import leftovers, remove_leftover
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.storage import kv
from sv_pipeline.table import open_table
from sv_pipeline.testing.fixtures import need
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.ingest import builds


class Cloud:
    """A bucket and a Bigtable instance; everything of a dataset is there but its source."""

    def __init__(self, folder: Path, server: GcsControl) -> None:
        self.server = server
        self.bucket = server.new_bucket()
        self.home = f"{self.bucket}home"
        self.folder = folder

    def raw(self, graph_id: str = "tissue", **changes: Any) -> dict[str, Any]:
        return builds.raw_config(
            self.folder,
            graph_id,
            data_source={"WATERSHED": f"{self.bucket}watershed"},
            graph_config={"ID_PREFIX": f"t{uuid.uuid4().hex[:8]}_"},
            backend_client={"TYPE": "bigtable", "CONFIG": {"PROJECT": "project", "INSTANCE": "instance"}},
            **changes,
        )


@pytest.fixture
def cloud(tmp_path: Path, gcs_server: GcsControl, bigtable_emulator: str) -> Cloud:
    return Cloud(tmp_path, gcs_server)


def test_in_the_cloud_the_result_is_the_same_as_on_disk(cloud: Cloud, twin: Dataset) -> None:
    dataset = stages.register(parse_config(cloud.raw()), cloud.home)
    ingest(dataset, workers=2)
    builds.assert_same(dataset, twin)
    builds.assert_nothing_leaked(dataset)
    builds.assert_sound(dataset)
    assert Registry(cloud.home).graph_ids() == ["tissue"]
    assert not [path for path in cloud.folder.rglob("*") if path.is_file() and "source" not in path.parts]


@pytest.mark.slow
def test_killed_in_the_cloud_an_ingest_is_completed(cloud: Cloud, twin: Dataset) -> None:
    need(sys.platform == "linux", "process groups as Linux has them")
    raw = cloud.raw(ingest={"chunks_per_batch": 1})
    config = builds.config_file(cloud.folder / "tissue.yaml", raw)
    url = f"{cloud.bucket}watershed"
    # A little latency: so that there is a middle to be killed in.
    cloud.server.add_fault(method="POST", delay=0.02)
    for done in (
        lambda: kv.list_keys(url, ".watershed/labels/"),
        lambda: kv.list_keys(url, ".watershed/edges/"),
        lambda: Base(url).done_tasks(),
    ):
        process = builds.start_cli(cloud.home, "ingest", config, "--workers", 2, **{ALONE_VARIABLE: "0"})
        builds.wait_until(lambda p=process, d=done: len(d()) >= 2 or p.poll() is not None, "two chunks")
        assert process.poll() is None, "too fast to be killed"
        builds.kill_group(process)
    cloud.server.clear()
    said = builds.end_of(builds.start_cli(cloud.home, "ingest", config, "--workers", 2))
    assert said.code == 0, said.err
    dataset = Registry(cloud.home).get("tissue")
    builds.assert_same(dataset, twin)
    builds.assert_nothing_leaked(dataset)
    builds.assert_sound(dataset)


def test_a_storage_that_fails_now_and_then_changes_nothing(cloud: Cloud, twin: Dataset) -> None:
    dataset = stages.register(parse_config(cloud.raw()), cloud.home)
    cloud.server.add_fault(status=503, probability=0.05)
    cloud.server.add_fault(method="POST", status=503, probability=0.05, phase="after")
    ingest(dataset)
    cloud.server.clear()
    builds.assert_same(dataset, twin)
    builds.assert_nothing_leaked(dataset)


def test_a_failed_populate_task_is_dumped_to_a_bucket(
    cloud: Cloud, twin: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERROR_DUMP", f"{cloud.bucket}dumps")
    monkeypatch.setattr("sv_pipeline.storage.context.CONTEXT_OPTIONS", {"gcs_request_retries": {"max_retries": 1}})
    monkeypatch.setattr("sv_pipeline.storage.retry.MAX_DELAY", 0.01)
    from sv_pipeline.storage.context import reset_context

    reset_context()
    dataset = stages.register(parse_config(cloud.raw()), cloud.home)
    ingest(dataset, mode=stages.IngestMode.GRAPH)
    cloud.server.add_fault(method="POST", match="/parts/1_0_0/", status=503)
    with pytest.raises(UnavailableError, match="parts/1_0_0"):
        ingest(dataset)
    dumps = kv.list_keys(f"{cloud.bucket}dumps")
    assert len(dumps) == 1
    assert dumps[0].startswith("populate_1_0_0_")
    content = json.loads(kv.read_bytes(f"{cloud.bucket}dumps", dumps[0]) or b"")
    assert content["error"]["kind"] == "unavailable"
    assert content["coordinate"] == [1, 0, 0]
    assert content["mips"][0]["shape"]
    assert "Traceback" in content["traceback"][0]
    cloud.server.clear()
    ingest(dataset)
    reset_context()
    builds.assert_same(dataset, twin)
    builds.assert_nothing_leaked(dataset)


def test_a_sample_in_the_cloud_leaves_nothing_there(cloud: Cloud, twin: Dataset) -> None:
    config = parse_config(cloud.raw())
    found = planning.plan_ingest(config, cloud.home, sample=12)
    layer2 = progress.layer_status(twin.graph)[2]
    assert found.quantity("supervoxels").value == layer2.supervoxels
    assert found.quantity("edges").value == layer2.edges
    assert not kv.list_keys(cloud.bucket)
    # What a killed one leaves is removed there too.
    raw = builds.config_file(cloud.folder / "tissue.yaml", cloud.raw())
    process = builds.start_cli(cloud.home, "plan", raw, "--sample", 3, SV_PIPELINE_FAILPOINT="sample_chunk_done:kill")
    assert builds.end_of(process).code != 0
    (left,) = leftovers(cloud.home)
    table = open_table(parse_config(left.config, stored=True), cloud.home)
    assert table.exists()
    assert kv.list_keys(left.folder)
    remove_leftover(cloud.home, left.name)
    assert not table.exists()
    assert not kv.list_keys(cloud.bucket)
