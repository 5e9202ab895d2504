"""What we publish for readers: JSON that any TensorStore opens as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import tensorstore as ts

from sv_pipeline.errors import ConfigError, NotFoundError
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.storage import ocdbt as ocdbt_specs
from sv_pipeline.storage.generations import current_version
from sv_pipeline_tests.segmentation.fork.test_fork import at_point, paint
from sv_pipeline_tests.segmentation.volumes import BASES, Watershed, expected_pyramid, make_watershed

READ = """
import json, sys, tensorstore as ts
for line in sys.stdin:
    spec = json.loads(line)
    print(int(ts.open(spec, read=True).result()[..., 0].read().result().astype(object).sum() % (1 << 61)))
"""


@pytest.fixture(params=["single", "numbered", "by reference"])
def watershed(request: pytest.FixtureRequest, storage_url: str) -> Watershed:
    made = make_watershed(storage_url, **BASES[request.param])
    made.populate()
    Fork(storage_url, "g").create()
    return made


def test_a_process_that_knows_only_tensorstore_reads_every_mip_latest_and_pinned(watershed: Watershed) -> None:
    pin = Fork(watershed.url, "g").generation()
    before = [mip.read().result() for mip in fork_mips(watershed.url)]
    paint(watershed.url, "g", 77)
    after = [mip.read().result() for mip in fork_mips(watershed.url)]
    published = [Fork(watershed.url, "g").spec(mip, version=v) for v in (pin, None) for mip in range(len(after))]
    lines = "\n".join(json.dumps(spec) for spec in published)
    read = subprocess.run([sys.executable, "-c", READ], input=lines, capture_output=True, text=True, check=True)
    expected = [int(labels.astype(object).sum() % (1 << 61)) for labels in before + after]
    assert [int(line) for line in read.stdout.split()] == expected
    assert expected[0] != expected[len(before)]


def fork_mips(url: str) -> list[ts.TensorStore]:
    return [Fork(url, "g").open(mip) for mip in range(len(Fork(url, "g").contract()["mips"]))]


def test_a_published_spec_holds_no_configuration_and_no_machine(watershed: Watershed) -> None:
    spec = Fork(watershed.url, "g").spec(1)
    assert "config" not in json.dumps(spec)
    assert "coordinator" not in json.dumps(spec)
    assert "version" not in spec["kvstore"]
    assert Fork(watershed.url, "g").spec(1, version=3)["kvstore"]["version"] == 3
    assert spec["scale_index"] == 1


def test_a_time_pins_to_the_generation_that_was_the_latest_then(watershed: Watershed) -> None:
    store = Fork(watershed.url, "g").store()
    original = at_point(watershed.url, "g")
    committed = current_version(store.base).commit_time
    assert committed <= datetime.now(UTC)
    paint(watershed.url, "g", 77)
    # One microsecond later, because commit times count nanoseconds.
    text = committed.strftime("%Y-%m-%dT%H:%M:%S.") + f"{committed.microsecond + 1:06d}Z"
    assert int(Fork(watershed.url, "g").open(version=text)[10, 0, 5].read().result()) == original


def test_a_pinned_store_refuses_writes(watershed: Watershed) -> None:
    pinned = Fork(watershed.url, "g").open(version=Fork(watershed.url, "g").generation())
    with pytest.raises(ValueError, match="Writing is not supported"):
        pinned[10, 0, 5].write(np.uint64(1)).result()


@pytest.mark.parametrize(
    ("version", "error"),
    [
        (0, ConfigError),
        (-3, ConfigError),
        (True, ConfigError),
        ("v3", ConfigError),
        ("2026-01-01", ConfigError),
        ("2026-01-01T00:00:00+00:00", ConfigError),
        (10_000, NotFoundError),
        ("2001-01-01T00:00:00Z", NotFoundError),
    ],
)
def test_versions_that_do_not_exist_or_make_no_sense_are_our_errors(
    tmp_path_factory: pytest.TempPathFactory, version: int | str, error: type[Exception]
) -> None:
    url = _small(tmp_path_factory)
    with pytest.raises(error):
        Fork(url, "g").open(version=version)


def test_a_missing_fork_a_missing_mip_and_a_missing_base_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"graph 'nobody' has no fork.*Fork.create"):
        Fork(tmp_path, "nobody").spec(0)
    watershed = make_watershed(str(tmp_path))
    watershed.populate()
    Fork(watershed.url, "g").create()
    for call in (Fork.spec, Fork.open):
        with pytest.raises(NotFoundError, match="no mip 17"):
            call(Fork(watershed.url, "g"), 17)
        with pytest.raises(NotFoundError, match="'typo' has no fork"):
            call(Fork(watershed.url, "typo"))


def test_the_contract_tells_where_the_mips_lie(watershed: Watershed) -> None:
    contract = json.loads(json.dumps(Fork(watershed.url, "g").contract()))
    assert contract["generation"] == Fork(watershed.url, "g").generation()
    for mip in contract["mips"]:
        opened = ts.open(mip["spec"]).result()
        assert list(opened.domain.origin[:3]) == mip["voxel_offset"]
        assert list(opened.domain.shape[:3]) == mip["size"]
        assert list(opened.chunk_layout.read_chunk.shape[:3]) <= mip["storage_chunk"]


def test_a_fork_in_a_bucket_has_a_neuroglancer_url(watershed: Watershed) -> None:
    url = Fork(watershed.url, "g").neuroglancer_url()
    if not watershed.url.startswith("gs://") or watershed.config.manifest_kind == "numbered":
        assert url is None
        return
    assert url is not None
    stack, ocdbt, array = url.split("|")
    assert (ocdbt, array) == ("ocdbt:", "neuroglancer-precomputed:")
    layers = json.loads(unquote(stack.removeprefix("kvstack:").removesuffix("/")))["layers"]
    assert all(set(layer) <= {"base", "exact", "prefix"} for layer in layers)
    assert layers[0]["base"] == ocdbt_specs.base_folder(watershed.url)
    # What a browser opens by these layers is what we open.
    store = ts.KvStore.open(
        {
            "driver": "ocdbt",
            "base": {"driver": "kvstack", "layers": layers},
            "value_data_prefix": "g_d/",
            "btree_node_data_prefix": "g_d/",
            "version_tree_node_data_prefix": "g_d/",
        }
    ).result()
    assert store["info"] == Fork(watershed.url, "g").store().kv["info"]


def test_a_handle_opened_before_a_commit_sees_it(watershed: Watershed) -> None:
    handle = Fork(watershed.url, "g").open()
    handle[10, 0, 5].read().result()
    paint(watershed.url, "g", 77)
    assert int(handle[10, 0, 5].read().result()) == 77


def test_handles_of_different_stores_are_not_mixed_in_one_commit(watershed: Watershed) -> None:
    store = Fork(watershed.url, "g").store()
    ocdbt_specs.require_one_store(store.kv, store.array(0), store.array(1))
    Fork(watershed.url, "other").create()
    stranger = Fork(watershed.url, "other").store()
    with pytest.raises(ConfigError, match="one commit"):
        ocdbt_specs.require_one_store(store.kv, stranger.array(0))


def test_mips_of_a_fork_are_those_of_the_base(watershed: Watershed) -> None:
    base = watershed.plan().base
    for mip, expected in enumerate(expected_pyramid(base, watershed.labels)):
        np.testing.assert_array_equal(Fork(watershed.url, "g").open(mip).read().result(), expected)


_made: dict[str, str] = {}


def _small(factory: pytest.TempPathFactory) -> str:
    if "url" not in _made:
        watershed = make_watershed(kv.as_url(factory.mktemp("small")), size=(20, 20, 20))
        watershed.populate()
        Fork(watershed.url, "g").create()
        _made["url"] = watershed.url
    return _made["url"]
