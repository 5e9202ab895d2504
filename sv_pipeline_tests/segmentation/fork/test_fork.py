"""Forks: one small object, independent of each other and of the base."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sv_pipeline.errors import ConfigError, ConflictError, NotFoundError, NotReadyError
from sv_pipeline.operations.pair import find_misfit
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import populate_task
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import NEWEST, Newest
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.segmentation.volumes import BASES, Watershed, make_watershed

POINT = (10, 0, 5)


def paint(url: str, graph_id: str, value: int) -> None:
    """One atomic commit to a fork: a few voxels of two mips, and a key of our own."""
    store = Fork(url, graph_id).store()
    with store.transaction() as transaction:
        for mip in (0, 1):
            store.array(mip).with_transaction(transaction)[10:13, 0:2, 5:7].write(np.uint64(value)).result()
        store.kv.with_transaction(transaction).write(ocdbt.OWN_KEYS + "ops/1", b"{}").result()


def at_point(url: str, graph_id: str, version: int | None = None) -> int:
    return int(Fork(url, graph_id).open(version=version)[POINT].read().result())


@pytest.fixture(params=["single", "numbered", "by reference"])
def watershed(request: pytest.FixtureRequest, storage_url: str) -> Watershed:
    made = make_watershed(storage_url, **BASES[request.param])
    made.populate()
    return made


def test_forks_start_as_the_base_and_go_their_own_ways(watershed: Watershed) -> None:
    url = watershed.url
    base_files = kv.list_keys(ocdbt.base_folder(url))
    original = at_point_of_labels(watershed)
    for graph_id in ("s", "sA", "s.1"):
        Fork(url, graph_id).create()
        np.testing.assert_array_equal(Fork(url, graph_id).open().read().result(), watershed.labels)
    paint(url, "s", 77)
    paint(url, "sA", 88)
    assert [at_point(url, graph_id) for graph_id in ("s", "sA", "s.1")] == [77, 88, original]
    assert kv.list_keys(ocdbt.base_folder(url)) == base_files, "nothing is written to the base"
    assert [Fork(url, graph_id).has_commits() for graph_id in ("s", "sA", "s.1")] == [True, True, False]
    Fork(url, "late").create()
    assert at_point(url, "late") == original


def at_point_of_labels(watershed: Watershed) -> int:
    return int(watershed.labels[tuple(np.subtract(POINT, watershed.grid.bounds.start))])


def test_a_commit_to_a_fork_is_one_generation_however_many_mips_and_keys(watershed: Watershed) -> None:
    Fork(watershed.url, "g").create()
    start = Fork(watershed.url, "g").generation()
    for n in range(20):
        paint(watershed.url, "g", 100 + n)
        assert Fork(watershed.url, "g").generation() == start + n + 1
    assert [at_point(watershed.url, "g", start + n + 1) for n in range(20)] == [100 + n for n in range(20)]
    assert at_point(watershed.url, "g", start) == at_point_of_labels(watershed)


def test_what_a_fork_names_is_seen_after_each_commit(watershed: Watershed, tmp_path: Path) -> None:
    """The comparison with the table opens the fork only if its manifest has changed, or does not tell."""
    fork, table = Fork(watershed.url, "g"), SqliteTable("g", tmp_path / "table")
    fork.create()
    table.create()
    assert find_misfit(SimpleNamespace(table=table, fork=fork)) is None
    for operation in (1, 2):
        Fork(watershed.url, "g").store().kv.write(NEWEST, Newest("graph", operation, "it").encode()).result()
        for _ in range(2):
            misfit = find_misfit(SimpleNamespace(table=table, fork=fork))
            assert misfit is not None
            assert f"voxels of operation {operation}," in misfit.message


def test_a_fork_is_refused_before_the_populate_is_complete(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    with pytest.raises(NotFoundError, match="no base"):
        Fork(storage_url, "g").create()
    plan = watershed.plan()
    for task in plan.missing[:5]:
        populate_task(plan, task)
    with pytest.raises(NotReadyError, match=r"13 of 18 tasks .* missing"):
        Fork(storage_url, "g").create()
    for task in plan.missing[5:]:
        populate_task(plan, task)
    with pytest.raises(NotReadyError, match="finish_populate"):
        Fork(storage_url, "g").create()
    assert not Fork(storage_url, "g").exists()
    assert Base(storage_url).forks() == []


@pytest.mark.parametrize("graph_id", ["d", "base", "parts", "manifest.ocdbt", "a/b", ".populated", ""])
def test_graph_ids_that_would_shadow_the_base_are_refused(tmp_path: Path, graph_id: str) -> None:
    with pytest.raises(ConfigError, match="graph id"):
        Fork(tmp_path, graph_id).create()


def test_a_fork_that_exists_is_kept_unless_it_is_to_be_recreated(watershed: Watershed) -> None:
    url = watershed.url
    Fork(url, "g").create()
    with pytest.raises(ConflictError, match="'g'"):
        Fork(url, "g").create()
    Fork(url, "g").create(recreate=True)
    paint(url, "g", 77)
    with pytest.raises(ConflictError, match="edits"):
        Fork(url, "g").create(recreate=True)
    assert at_point(url, "g") == 77
    Fork(url, "g").create(recreate=True, force=True)
    assert at_point(url, "g") == at_point_of_labels(watershed)
    assert not Fork(url, "g").has_commits()
    paint(url, "g", 78)
    assert at_point(url, "g") == 78


def test_a_removed_fork_is_gone_with_all_its_files(watershed: Watershed) -> None:
    url = watershed.url
    before = kv.list_keys(url)
    Fork(url, "g").create()
    paint(url, "g", 77)
    Fork(url, "g").remove(force=True)
    assert kv.list_keys(url) == before
    with pytest.raises(NotFoundError, match="'g'"):
        Fork(url, "g").open()


def test_a_creation_that_was_killed_half_way_can_be_repeated(watershed: Watershed) -> None:
    url = watershed.url
    Fork(url, "g").create()
    kv.delete_key(ocdbt.fork_folder(url, "g"), ocdbt.SINGLE_MANIFEST)
    assert Base(url).forks() == []
    Fork(url, "g").create()
    assert at_point(url, "g") == at_point_of_labels(watershed)


def test_a_removal_that_was_killed_half_way_leaves_nothing_to_the_next_fork(watershed: Watershed) -> None:
    url = watershed.url
    Fork(url, "g").create()
    for value in (77, 78):
        paint(url, "g", value)
    kv.delete_key(ocdbt.fork_folder(url, "g"), ocdbt.SINGLE_MANIFEST)
    Fork(url, "g").create()
    assert at_point(url, "g") == at_point_of_labels(watershed)
    assert not Fork(url, "g").has_commits()
    paint(url, "g", 79)
    assert at_point(url, "g") == 79


def test_of_several_creators_at_least_one_wins_and_the_fork_is_right(watershed: Watershed) -> None:
    def create(_: int) -> bool:
        try:
            Fork(watershed.url, "g").create()
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert any(list(pool.map(create, range(6))))
    np.testing.assert_array_equal(Fork(watershed.url, "g").open().read().result(), watershed.labels)


def test_nothing_can_be_written_to_a_fork_that_does_not_exist(watershed: Watershed) -> None:
    before = kv.list_keys(watershed.url)
    with pytest.raises(NotFoundError, match=r"no fork.*Fork.create"):
        Fork(watershed.url, "typo").store()
    assert kv.list_keys(watershed.url) == before


def test_a_fork_costs_the_same_requests_whatever_the_size_of_the_base(gcs_server: GcsControl) -> None:
    counts = []
    for size in ((20, 20, 20), (90, 90, 50)):
        watershed = make_watershed(gcs_server.new_bucket(), size=size)
        watershed.populate()
        gcs_server.clear()
        Fork(watershed.url, "g").create()
        requests = gcs_server.requests()
        assert not [name for _, name in requests if "/base/d/" in name or "/parts/" in name]
        counts.append(len(requests))
    assert counts[0] == counts[1]
    assert counts[0] < 15
