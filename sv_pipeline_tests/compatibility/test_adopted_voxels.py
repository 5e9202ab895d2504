"""Bases, forks and single stores of PyChunkedGraph, with its supervoxel splits in them: attached, edited, verified."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore as ts

from sv_pipeline import edits
from sv_pipeline.config import parse_config
from sv_pipeline.errors import ConfigError, ConflictError, NotReadyError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.status import graph_status
from sv_pipeline.storage import kv
from sv_pipeline.table import keys, meta
from sv_pipeline.table.columns import META_KEY
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline.testing import worlds
from sv_pipeline.testing.tables import EVERYTHING, Backend
from sv_pipeline.testing.volumes import drawn
from sv_pipeline.testing.worlds import World
from sv_pipeline_tests.compatibility.their_voxels import DEFAULTS, Theirs

ALL = slice(None)
SHAPE = (48, 16, 16)
BARS = {1: (ALL, slice(1, 5), slice(1, 5)), 2: (ALL, slice(5, 9), slice(1, 5)), 3: (ALL, slice(10, 14), slice(1, 5))}
BRANCH: dict[str, Any] = {"ocdbt_config": {**DEFAULTS, "enabled": True}}
"""Custom data of the meta of a graph with a fork."""
MARCH: dict[str, Any] = {"seg": {"ocdbt": True, "sv_split_threshold": 10}}
"""Custom data of a graph whose voxels are the one store of its watershed."""


@dataclass(frozen=True)
class Adopted:
    """A graph of theirs, as it was found, and as we see it."""

    theirs: Theirs
    world: World
    voxels: npt.NDArray[np.uint64]
    """As they left them."""
    spec: dict[str, Any]
    """Key-value spec by which they read and write."""

    @property
    def dataset(self) -> Dataset:
        return self.world.dataset


Adopt = Callable[[dict[str, Any]], Adopted]


@pytest.fixture(scope="module")
def split_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A graph with a split through a supervoxel, whose rows are those that their splits write as well."""
    volume = drawn(SHAPE, BARS, {1: 1, 2: 1, 3: 2}, voxel_offset=(8, -8, 16))
    world = worlds.build(
        volume,
        tmp_path_factory.mktemp("split"),
        ocdbt_config={"populate_layer": 3, "mips": 3, "populate_method": "parts"},
    )
    request = world.split_request([4, 2, 2], [28, 2, 2])
    edit = edits.split(world.graph, request, volume=world.volume)
    assert len(edit.supervoxels)
    return world


@pytest.fixture(params=[("sqlite", "file"), ("bigtable", "gs")], ids="-".join)
def found(request: pytest.FixtureRequest, split_world: World, tmp_path: Path) -> Callable[[dict[str, Any]], Adopted]:
    """A graph of theirs: nothing of ours is left, neither in the table nor beside the watershed."""
    backend: Backend = request.param[0]
    if backend == "bigtable":
        request.getfixturevalue("bigtable_emulator")
    url = request.getfixturevalue("gcs_server").new_bucket() if request.param[1] == "gs" else f"file://{tmp_path}/ws/"

    def make(custom_data: dict[str, Any]) -> Adopted:
        copy = split_world.copied_to(tmp_path / "copy", backend, watershed=url)
        kv.delete_prefix(url, "ocdbt/")
        ours = [key for key, _ in copy.table.scan([EVERYTHING]) if key.startswith(b"sv_pipeline:")]
        copy.table.mutate([RowMutation(key, [DeleteCells()]) for key in ours])
        stored = meta.read_meta(copy.table)
        source = stored.data_source._replace(WATERSHED=url.removesuffix("/"))
        meta.write_meta(copy.table, replace(stored, data_source=source, custom_data=custom_data), overwrite=True)
        theirs = Theirs.of(meta.read_meta(copy.table))
        assert theirs.has_voxels
        voxels = split_world.voxels()
        spec = theirs.fork_spec() if "ocdbt_config" in custom_data else theirs.base_spec(with_config=True)
        if "ocdbt_config" in custom_data:
            theirs.make_base()
            theirs.make_fork()
        else:
            theirs.make_base(mips=1, info_file=False)
        theirs.write(voxels, spec=spec)
        raw = copy.dataset.config.model_dump(mode="json", by_alias=True)
        raw |= {"source": None, "ocdbt_config": {}}
        if backend == "sqlite":
            raw["backend_client"]["CONFIG"]["PATH"] = f"{copy.dataset.home}/tables"
        return Adopted(theirs, World(Dataset(parse_config(raw), str(tmp_path / "home"))), voxels, spec)

    return make


@pytest.fixture
def adopt(found: Callable[[dict[str, Any]], Adopted]) -> Adopt:
    """The same, attached."""

    def attach(custom_data: dict[str, Any]) -> Adopted:
        adopted = found(custom_data)
        stages.attach(adopted.dataset.config, adopted.dataset.home)
        return adopted

    return attach


KINDS = pytest.mark.parametrize("custom_data", [BRANCH, MARCH], ids=["fork", "single_store"])


@KINDS
def test_voxels_of_theirs_are_adopted_as_they_are_with_their_splits(adopt: Adopt, custom_data: dict[str, Any]) -> None:
    adopted = adopt(custom_data)
    np.testing.assert_array_equal(adopted.world.voxels(), adopted.voxels)
    assert adopted.dataset.fork.is_in_place() == (custom_data is MARCH)
    assert adopted.dataset.base.forks() == [adopted.dataset.graph_id]
    status = graph_status(adopted.dataset)
    assert status.forked
    assert status.stages[-1].state == "built elsewhere"
    report = adopted.world.report()
    faults = [(r.name, f) for r in report.results for f in r.findings if f.severity == "error" and r.name != "pyramid"]
    assert not faults, report.summary()


@KINDS
def test_edits_on_voxels_of_theirs_are_sound_and_seen_by_both(adopt: Adopt, custom_data: dict[str, Any]) -> None:
    adopted = adopt(custom_data)
    world, before = adopted.world, adopted.voxels
    folder = adopted.dataset.base.folder
    base_before = {key: kv.read_bytes(folder, key) for key in kv.list_keys(folder)}
    merged = edits.merge(world.graph, world.merge_request([4, 2, 2], [4, 12, 2]), volume=world.volume)
    assert len(merged.roots) == 1
    request = world.split_request([30, 2, 2], [44, 2, 2])
    cut = edits.split(world.graph, request, volume=world.volume)
    assert len(cut.supervoxels)
    after = world.voxels()
    assert (after != before).any()
    np.testing.assert_array_equal(adopted.theirs.open(spec=adopted.spec).read().result(), after)
    if custom_data is BRANCH:
        assert {key: kv.read_bytes(folder, key) for key in kv.list_keys(folder)} == base_before
    # They go on as well, and both see it.
    other = np.where(after == after[45, 11, 2], np.uint64(1), after)
    adopted.theirs.write(other, spec=adopted.spec)
    np.testing.assert_array_equal(world.voxels(), other)
    adopted.theirs.write(after, spec=adopted.spec)
    edits.undo(world.graph, cut.operation_id, "tester")
    report = world.report()
    faults = [(r.name, f) for r in report.results for f in r.findings if f.severity == "error" and r.name != "pyramid"]
    assert not faults, report.summary()


def test_a_single_store_has_one_graph_and_cannot_be_forked_or_removed(adopt: Adopt, tmp_path: Path) -> None:
    adopted = adopt(MARCH)
    dataset = adopted.dataset
    with pytest.raises(ConflictError, match="base itself"):
        dataset.fork.remove(force=True)
    with pytest.raises(ConflictError, match="in use by the forks"):
        dataset.base.wipe()
    other = replace(dataset, config=dataset.config.model_copy(update={"graph_id": "other"}))
    with pytest.raises(ConfigError, match=r"PyChunkedGraph keeps split supervoxels there"):
        other.fork.create()
    with pytest.raises(ConflictError, match=dataset.graph_id):
        other.fork.adopt(in_place=True)
    with pytest.raises(ConfigError, match=r"PyChunkedGraph keeps split supervoxels there"):
        stages.register(other.config, str(tmp_path / "elsewhere"))


def test_voxels_of_a_single_store_are_not_announced_as_a_fork(adopt: Adopt) -> None:
    adopted = adopt(MARCH)
    before = adopted.world.table.read_rows([keys.META], [META_KEY])
    ingest(adopted.dataset, mode=stages.IngestMode.VOXELS)
    assert adopted.world.table.read_rows([keys.META], [META_KEY]) == before


def test_a_new_graph_can_be_forked_from_a_base_of_theirs_once_it_is_complete(adopt: Adopt) -> None:
    adopted = adopt(BRANCH)
    other = replace(adopted.dataset, config=adopted.dataset.config.model_copy(update={"graph_id": "other"}))
    ingest(other, mode=stages.IngestMode.VOXELS)
    watershed = adopted.theirs.open(spec=adopted.theirs.base_spec()).read().result()
    np.testing.assert_array_equal(other.fork.open().read().result(), watershed)
    other.fork.remove()
    base = adopted.dataset.base
    store = kv.open_kv(base.folder)
    volume = ts.KvStore.open({"driver": "ocdbt", "base": store.spec().to_json()}).result()
    chunk = next(key for key in volume.list().result() if key.startswith(base.info().volume.scales[0].key.encode()))
    volume.delete_range(ts.KvStore.KeyRange(chunk, chunk + b"\0")).result()
    with pytest.raises(NotReadyError, match="lacks voxels of the watershed"):
        other.fork.create()


def test_an_attached_graph_that_gets_voxels_is_announced_with_every_key(adopt: Adopt) -> None:
    """Also where its meta has only other data of theirs."""
    adopted = adopt(BRANCH)
    dataset = adopted.dataset
    stored = meta.read_meta(dataset.table)
    meta.write_meta(dataset.table, replace(stored, custom_data={"operation_id": 5}), overwrite=True)
    ingest(dataset, mode=stages.IngestMode.VOXELS)
    custom = meta.read_meta(dataset.table).custom_data
    assert custom["operation_id"] == 5
    announced = custom["ocdbt_config"]
    assert announced["enabled"] is True
    assert set(DEFAULTS) <= set(announced)
    assert {k: announced[k] for k in ("compression", "max_inline_value_bytes")} == adopted.theirs.config
    assert json.loads(json.dumps(announced)) == announced
    np.testing.assert_array_equal(Theirs.of(meta.read_meta(dataset.table)).open().read().result(), adopted.voxels)
