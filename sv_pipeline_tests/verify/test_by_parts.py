"""Verification by parts finds what a verification of the whole graph finds; it is resumed; a sample bounds the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.memory import MEMORY_VARIABLE
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import Dataset
from sv_pipeline.storage import kv
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import DeleteCells, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.verify import pool
from sv_pipeline.verify.boundary import Boundary, Strays
from sv_pipeline.verify.confidence import Confidence
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline.verify.part import SHIFT, Division, Part
from sv_pipeline.verify.part_checks import ROW_CHECKS
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import chosen_checks, verify
from sv_pipeline_tests.editable import ingested, two_parts_of_an_object
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.reference_data import ReferenceDataset
from sv_pipeline_tests.verify.conftest import copy_of, divisions, found

LAYOUT = IdLayout(n_layers=5)
GRID = ChunkGrid(Box((0, 0, 0), (70, 30, 20)), (10, 10, 10))


# -- the division -----------------------------------------------------------------------------------------------------


def every_part(division: Division) -> list[Part]:
    return [part for stage in division.stages() for part in stage]


@given(st.data())
@examples(50)
def test_each_id_belongs_to_one_part_whose_ranges_hold_its_row(data: st.DataObject) -> None:
    """Also ids that make no sense: outside the grid, of layers that the graph does not have."""
    layers = data.draw(st.sampled_from(divisions(LAYOUT.n_layers)))
    cuts = sorted(data.draw(st.sets(st.integers((5 << SHIFT) + 1, (5 << SHIFT) + 5000), max_size=3)))
    division = Division(LAYOUT, GRID, layers, tuple(cuts))
    near = st.builds(
        lambda layer, at, segment: (
            int(LAYOUT.chunk_ids(layer, np.minimum(at, (1 << LAYOUT.bits_per_dimension(layer)) - 1))) | segment
        ),
        st.integers(1, 5),
        st.tuples(*[st.integers(0, 9)] * 3),
        st.integers(0, 4000),
    )
    anything = st.integers(1 << SHIFT, (1 << 64) - 1)
    ids = np.array(data.draw(st.lists(near | anything, min_size=1, max_size=50)), np.uint64)
    parts = every_part(division)
    owners = np.array([division.owns(part, ids) for part in parts])
    assert (owners.sum(axis=0) == 1).all()
    for key, owner in zip(keys.node_keys(ids), owners.argmax(axis=0), strict=True):
        holding = [part for part in parts if any(a <= key < b for a, b in division.ranges(part))]
        assert holding == [parts[owner]]


def test_parts_get_what_all_parts_below_them_hand_up() -> None:
    division = Division(LAYOUT, GRID, (2, 4))
    parts = every_part(division)
    for lower in division.stages()[0]:
        assert [part.high for part in parts if division.is_below(lower, part)] == [4, 5]
    for part in parts:
        assert list(division.parts_below(part)) == [lower for lower in parts if division.is_below(lower, part)]


# -- the same findings ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoiled(sound: ReferenceDataset, tmp_path_factory: pytest.TempPathFactory) -> ReferenceDataset:
    """A copy of the sound graph whose rows are damaged and restored again and again."""
    folder = tmp_path_factory.mktemp("spoiled")
    table = SqliteTable("spoiled", str(folder / "tables"))
    table.create()
    return copy_of(sound, folder / "watershed", table)


def rows_checked(data: ReferenceDataset, division: Division | None) -> VerifyReport:
    return verify(data.table, data.fork, checks=ROW_CHECKS, division=division)


KINDS = ("row", "cell", "parent", "children", "retired", "edges", "again")


@dataclass(frozen=True)
class Damage:
    """One change of a row. Nodes are numbers that are taken modulo the number of nodes of a layer."""

    kind: str
    nodes: tuple[tuple[int, int], ...]
    """Layer and number of the node whose row is changed, and of two others."""
    layer: int
    column: int

    def mutation(self, table: Table, ids: dict[int, list[int]]) -> RowMutation | None:
        """A missing row or cell, a pointer to another node, a list of other nodes, a retired node, a moved cell."""
        node, other, third = (ids[layer][number % len(ids[layer])] for layer, number in self.nodes)
        key = keys.node_key(node)
        row = table.read_rows([key]).get(key, {})
        if self.kind == "row":
            return RowMutation(key, [DeleteCells()])
        if self.kind == "parent":
            return RowMutation(key, [columns.PARENT.set(other)])
        if self.kind == "children":
            return RowMutation(key, [columns.CHILDREN.set(np.array([other, third], np.uint64))])
        if self.kind == "retired":
            retired = columns.NEW_IDS if node >> SHIFT == 1 else columns.NEW_PARENTS
            return RowMutation(key, [retired.set(np.array([other], np.uint64))])
        if self.kind == "edges":
            pairs = np.array([[node, other], [node, third]], np.uint64)
            return RowMutation(key, [columns.cross_edges(self.layer).set(pairs)])
        if not row:
            return None
        column = sorted(row)[self.column % len(row)]
        if self.kind == "cell":
            return RowMutation(key, [DeleteCells(column)])
        return RowMutation(keys.node_key(other), [SetCell(column, row[column][0].value)])


NODE = st.tuples(st.integers(1, 5), st.integers(0, 999))
DAMAGE = st.builds(Damage, st.sampled_from(KINDS), st.tuples(NODE, NODE, NODE), st.integers(2, 4), st.integers(0, 9))


@given(st.lists(DAMAGE, min_size=1, max_size=3), st.integers(0, 9), st.sets(st.integers(0, 999), max_size=3))
@example([Damage("children", ((3, 393), (3, 393), (5, 262)), 2, 5)], 1, {49, 444, 286})  # no child had a row
@examples(12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_any_damage_of_rows_is_found_alike_by_parts(
    spoiled: ReferenceDataset, faults: list[Damage], choice: int, cut: set[int]
) -> None:
    table, top = spoiled.table, spoiled.layout.n_layers
    known = sorted({*spoiled.hierarchy.parents, *spoiled.hierarchy.children})
    ids = {layer: [n for n in known if n >> SHIFT == layer] for layer in range(1, top + 1)}
    changes = [change for fault in faults if (change := fault.mutation(table, ids)) is not None]
    touched = sorted({change.key for change in changes})
    before = table.read_rows(touched)
    try:
        table.mutate(changes)
        whole = rows_checked(spoiled, None)
        every = divisions(top)
        cuts = tuple(sorted({ids[top][number % len(ids[top])] for number in cut}))
        division = Division(spoiled.layout, spoiled.grid, every[choice % len(every)], cuts)
        parts = rows_checked(spoiled, division)
        for result in parts.results:
            assert found(result) == found(whole[result.name]), (division, parts.summary(), whole.summary())
    finally:
        table.mutate(RowMutation(key, [DeleteCells()]) for key in touched)
        table.mutate(
            RowMutation(key, [SetCell(column, c.value, c.timestamp) for column, cells in row.items() for c in cells])
            for key, row in before.items()
        )


# -- records, workers and resumption ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("parts")
    volume = synthetic_neuropil((128, 96, 64), seed=5)
    arrays = (volume.segmentation, volume.bodies, volume.resolution)
    return ingested(folder / "graph", folder / "home", "small", *arrays).dataset


@pytest.fixture
def dataset(built: Dataset, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A graph, and a memory budget that it does not fit."""
    monkeypatch.setenv(MEMORY_VARIABLE, "1")
    return built


def whole(dataset: Dataset) -> VerifyReport:
    return verify(dataset.table, dataset.fork, division=Division(dataset.graph.layout, dataset.grid))


def same(first: VerifyReport, second: VerifyReport) -> bool:
    return [found(result) for result in first.results] == [found(result) for result in second.results]


def test_a_boundary_survives_its_file() -> None:
    pairs = np.array([[1, 2], [3, 4]], np.uint64)
    boundary = Boundary(raised=pairs, suspects=np.array([9], np.uint64), strays=Strays(pointers=pairs))
    read = Boundary.from_bytes(boundary.to_bytes())
    np.testing.assert_array_equal(read.raised, pairs)
    np.testing.assert_array_equal(read.strays.pointers, pairs)
    assert len(read.strays) == 2
    assert len(read.edges) == 0


def command(dataset: Dataset, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sv_pipeline.cli.main", "verify", dataset.graph_id, *options],
        env={**os.environ, "SV_PIPELINE_HOME": dataset.home},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def records_of(dataset: Dataset) -> list[str]:
    """Keys of the parts with a result."""
    folder = kv.join_url(dataset.home, pool.FOLDER)
    return [key for key in kv.list_keys(folder) if key.endswith(".json")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_graph_larger_than_its_budget_gives_the_same_report(dataset: Dataset, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_dataset(dataset, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert same(report, whole(dataset))
    assert report.ok, report.summary()
    assert seen[-1][0] == seen[-1][1] > 1500, "there are many parts"
    assert not records_of(dataset), "records of a verification that has ended are removed"


def test_a_killed_verification_is_resumed(dataset: Dataset) -> None:
    process = command(dataset, "--workers", "2")
    while process.poll() is None and len(records_of(dataset)) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(1)  # the workers end by themselves
    before = set(records_of(dataset))
    assert before, "it was killed before its first part was done"
    done: list[str] = []
    verification = pool.begin(dataset, chosen_checks(None))
    assert len(verification.records.done()) == len(before)
    run_part = type(verification).run_part

    def noted(self: Any, name: str, *rest: Any) -> None:
        done.append(name)
        run_part(self, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(verification), "run_part", noted)
        report = verify_dataset(dataset)
    assert not {key.rpartition("/")[2].removesuffix(".json") for key in before} & set(done)
    assert same(report, whole(dataset))


def test_results_of_another_state_of_the_graph_are_not_used(dataset: Dataset) -> None:
    first = pool.begin(dataset, chosen_checks(None))
    first.run_part(first.stages()[0][0])
    assert pool.begin(dataset, chosen_checks(None)).records.done()
    assert not pool.begin(dataset, chosen_checks(["hierarchy"])).records.done()
    assert not pool.begin(dataset, chosen_checks(None), sample=3).records.done()
    counters.new_operation_id(dataset.table)
    assert not pool.begin(dataset, chosen_checks(None)).records.done()


def test_parts_that_found_something_are_verified_again(dataset: Dataset) -> None:
    """A damage that is repaired between a killed verification and the next one is not reported any more."""
    table = dataset.table
    (key, row), *_ = table.scan([keys.layer_range(2)], newest_only=True)
    cells = [SetCell(column, versions[0].value, versions[0].timestamp) for column, versions in row.items()]
    table.mutate([RowMutation(key, [DeleteCells(columns.PARENT.key)])])
    killed = pool.begin(dataset, chosen_checks(None))
    for name in killed.stages()[0]:
        killed.run_part(name)
    faulty = {name for name in killed.records.done() if killed.records.findings(name).has_errors}
    assert faulty
    table.mutate([RowMutation(key, cells)])
    resumed = pool.begin(dataset, chosen_checks(None))
    assert resumed.records.done() == set(killed.stages()[0]) - faulty
    report = verify_dataset(dataset)
    assert report.ok, report.summary()


@pytest.mark.parametrize("name", ["plan", "result"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_records_that_cannot_be_read_are_made_again(dataset: Dataset, name: str, content: bytes) -> None:
    killed = pool.begin(dataset, chosen_checks(None))
    for part in killed.stages()[0][:3]:
        killed.run_part(part)
    url = pool.folder_of(dataset, killed.plan)
    kv.write_bytes(url, pool.PLAN if name == "plan" else f"{killed.stages()[0][1]}.json", content)
    assert len(pool.begin(dataset, chosen_checks(None)).records.done()) == (0 if name == "plan" else 2)
    report = verify_dataset(dataset)
    assert report.ok, report.summary()


def test_results_are_removed_on_request_and_after_a_week(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for again in (True, False):
        first = pool.begin(dataset, chosen_checks(None))
        first.run_part(first.stages()[0][0])
        if not again:
            monkeypatch.setattr(pool, "MOST_SECONDS", -1)
        assert not pool.begin(dataset, chosen_checks(None), again=again).records.done()


def test_an_edited_graph_is_verified_by_parts(dataset: Dataset) -> None:
    graph = OpenGraph(dataset)
    source, sink = two_parts_of_an_object(graph, of_a_supervoxel=True)
    graph.split([source], [sink])
    report = verify_dataset(dataset)
    assert report.ok, report.summary()
    assert same(report, whole(dataset))


# -- samples ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.data())
@examples(60)
def test_a_bound_is_the_largest_number_that_the_sample_allows(population: int, data: st.DataObject) -> None:
    sample = data.draw(st.integers(1, population))
    bad = data.draw(st.integers(0, sample))
    bound = Confidence.of(population, sample, bad)
    assert bad <= bound.most <= population - sample + bad
    rounding = 1e-12  # with 1 of 40 in the sample, for example, the chance is exactly 0.05
    assert hypergeom.cdf(bad, population, bound.most, sample) > 0.05 - rounding
    if bound.most < population - sample + bad:
        assert hypergeom.cdf(bad, population, bound.most + 1, sample) <= 0.05 + rounding


def test_a_clean_sample_of_a_large_graph_follows_the_rule_of_three() -> None:
    assert Confidence.of(10_000_000, 1000, 0).fraction == pytest.approx(3 / 1000, rel=0.01)


def test_a_sample_says_how_sure_it_is(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MEMORY_VARIABLE)
    report = verify_dataset(dataset, sample=5)
    voxels = report["voxels"]
    assert voxels.checked == 5
    assert voxels.population == dataset.grid.count(2)
    assert voxels.confidence is not None
    assert 0 < voxels.confidence.fraction < 0.6
    assert "with 95% confidence at most" in report.summary()
    assert verify_dataset(dataset)["voxels"].confidence is None


def test_edits_made_meanwhile_are_not_taken_for_faults(dataset: Dataset) -> None:
    """Parts are verified one after the other while a proofreader splits and undoes; only what stays is reported."""
    graph = OpenGraph(dataset)
    source, sink = two_parts_of_an_object(graph)
    stop = threading.Event()

    def edit() -> None:
        while not stop.is_set():
            operation = graph.split([source], [sink]).operation_id
            graph.undo(operation)
            stop.wait(1)

    with ThreadPoolExecutor(1) as threads:
        editor = threads.submit(edit)
        try:
            report = verify_dataset(dataset, checks=[*ROW_CHECKS, "voxels", "digests"])
        finally:
            stop.set()
            editor.result()
    for name in report.failed:
        told = [warning.message for warning in report[name].warnings]
        assert any("being edited" in text or "was edited" in text or "half written" in text for text in told), name
    last = verify_dataset(dataset)
    assert last.ok, last.summary()
    assert same(last, whole(dataset))


def test_a_fault_is_still_found_while_others_edit(dataset: Dataset) -> None:
    """An operation that begins after the plan makes faulty parts be verified again; a real fault stays."""
    root = next(key for key, _ in dataset.table.scan([keys.layer_range(dataset.graph.n_layers)]))
    seen: list[int] = []

    def begin_operation(done: int, total: int) -> None:
        if not seen:
            seen.append(counters.new_operation_id(dataset.table))

    before = dataset.table.read_rows([root])[root]
    dataset.table.mutate([RowMutation(root, [columns.PARENT.set(int(root))])])
    try:
        report = verify_dataset(dataset, checks=["hierarchy"], progress=begin_operation)
        assert report.failed == ("hierarchy",)
        assert {str(int(root))} == {error.place for error in report["hierarchy"].errors}
        assert not report["hierarchy"].warnings, "the fault does not come from an edit"
    finally:
        restored = [SetCell(column, c.value, c.timestamp) for column, cells in before.items() for c in cells]
        dataset.table.mutate([RowMutation(root, [DeleteCells(), *restored])])
