"""One layout of voxels: what we make is opened and written to by specs built from our meta alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorstore as ts

from sv_pipeline.config import parse_config
from sv_pipeline.errors import ConfigError
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.table import meta
from sv_pipeline_tests.compatibility.their_voxels import Theirs
from sv_pipeline_tests.segmentation.volumes import Watershed, make_watershed


def theirs_of(watershed: Watershed, graph_id: str = "g") -> Theirs:
    """Their view of one of our graphs, by the meta that its table has."""
    config = parse_config(
        {
            "graph_id": graph_id,
            "data_source": {"WATERSHED": watershed.url.removesuffix("/")},
            "ocdbt_config": watershed.config.model_dump(exclude_defaults=True),
        }
    )
    stored = meta.decode_meta(meta.encode_meta(meta.from_config(config)))
    return Theirs.of(stored)


@pytest.fixture(params=[{}, {"compression_level": None, "max_inline_value_bytes": 100}], ids=["defaults", "other"])
def watershed(request: pytest.FixtureRequest, storage_url: str) -> Watershed:
    made = make_watershed(storage_url, **request.param)
    made.populate()
    Fork(storage_url, "g").create()
    return made


def test_their_spec_of_our_meta_is_ours(watershed: Watershed) -> None:
    theirs = theirs_of(watershed)
    assert theirs.has_voxels
    spec = theirs.fork_spec()
    config = spec.pop("config")
    assert spec == Fork(watershed.url, "g").store().spec
    found = ts.ocdbt.dump(kv.open_kv(ocdbt.base_folder(watershed.url))).result()["config"]
    assert config == {name: found[name] for name in config}


def test_their_spec_opens_every_mip_of_our_fork_and_base(watershed: Watershed) -> None:
    theirs = theirs_of(watershed)
    base = Base(watershed.url).info()
    assert base.n_mips > 1
    for mip in range(base.n_mips):
        ours = Fork(watershed.url, "g").open(mip).read().result()
        np.testing.assert_array_equal(theirs.open(mip).read().result(), ours)
        np.testing.assert_array_equal(theirs.open(mip, spec=theirs.base_spec(with_config=True)).read().result(), ours)


def test_a_split_that_they_write_is_read_by_us_and_nothing_reaches_the_base(watershed: Watershed) -> None:
    theirs = theirs_of(watershed)
    base_files = kv.list_keys(ocdbt.base_folder(watershed.url))
    before = Fork(watershed.url, "g").generation()
    handle = Fork(watershed.url, "g").open()
    old = int(handle[20, 0, 10].read().result()) or int(watershed.labels.max())
    box = (slice(5, 40), slice(-7, 20), slice(3, 30))
    wanted = np.where(watershed.labels == old, np.uint64(5 << 56 | 7), watershed.labels)
    wanted[35:], wanted[:, 27:], wanted[:, :, 27:] = (
        watershed.labels[35:],
        watershed.labels[:, 27:],
        watershed.labels[:, :, 27:],
    )
    theirs.recolour(old, 5 << 56 | 7, box)
    assert (wanted != watershed.labels).any()
    np.testing.assert_array_equal(handle.read().result(), wanted)
    np.testing.assert_array_equal(Fork(watershed.url, "g").open().read().result(), wanted)
    assert kv.list_keys(ocdbt.base_folder(watershed.url)) == base_files
    pinned = theirs.open(spec=theirs.fork_spec(version=before))
    np.testing.assert_array_equal(pinned.read().result(), watershed.labels)


def test_the_volume_is_all_that_lies_at_the_root_besides_our_own_folder(watershed: Watershed) -> None:
    keys = [key.decode() for key in Fork(watershed.url, "g").store().kv.list().result()]
    scales = {scale.key for scale in Base(watershed.url).info().volume.scales}
    assert {key.split("/")[0] for key in keys} == {"info", "_sv_pipeline", *scales}


def test_a_fork_that_they_cannot_read_is_not_announced_to_them(tmp_path: Any) -> None:
    watershed = make_watershed(f"file://{tmp_path}", manifest_kind="numbered")
    assert not theirs_of(watershed).has_voxels


def test_a_graph_without_voxels_is_not_announced_to_them() -> None:
    raw = {"graph_id": "g", "data_source": {"WATERSHED": "/ws"}, "ingest": {"mode": "graph"}}
    assert not meta.from_config(parse_config(raw)).custom_data["ocdbt_config"]["enabled"]


def test_storage_chunks_are_limited_as_theirs_are(tmp_path: Any) -> None:
    watershed = make_watershed(
        f"file://{tmp_path}", size=(300, 150, 70), chunk_size=(256, 256, 128), storage_chunk=(256, 64, 70)
    )
    assert watershed.plan().base.volume.scales[0].chunk_size == (128, 64, 64)


def test_a_base_of_the_first_version_is_refused_with_the_remedy(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    folder = ocdbt.base_folder(storage_url)
    kv.write_bytes(folder, "base.json", b'{"record_version": 1, "array_path": "seg/", "info": {}}')
    for ask in (
        lambda: Base(storage_url).info(),
        lambda: Base(storage_url).create(watershed.config, watershed.grid),
        lambda: Fork(storage_url, "g").create(),
    ):
        with pytest.raises(ConfigError, match=r"first version of sv_pipeline.*build its graphs again"):
            ask()
