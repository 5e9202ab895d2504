"""A sound graph to plant faults in: built once, copied for each test."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.table import keys, meta
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import DeleteCells, RowKeyRange, RowMutation, RowView, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.volumes import cells
from sv_pipeline.verify.part import Division
from sv_pipeline.verify.part_checks import ROW_CHECKS
from sv_pipeline.verify.report import CheckResult, VerifyReport
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.reference_data import ReferenceDataset, build_dataset

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)


@dataclass
class Planted:
    """A copy of the sound graph, with handles to break it."""

    data: ReferenceDataset

    @property
    def table(self) -> Table:
        return self.data.table

    def verify(self, checks: Sequence[str] | None = None, **options: object) -> VerifyReport:
        """Verify the graph as a whole, and by parts, divided at random: both must find the same."""

        def by(division: Division | None) -> VerifyReport:
            wanted = checks if division is None or checks is not None else ["meta", *ROW_CHECKS]
            return verify(
                self.table,
                self.data.fork,
                checks=wanted,
                division=division,
                **options,  # type: ignore[arg-type]
            )

        whole = by(None)
        options.pop("progress", None)
        for layers in random.sample(divisions(self.data.layout.n_layers), 1):
            parts = by(Division(self.data.layout, self.data.grid, layers, self.cuts()))
            for result in parts.results:
                assert found(result) == found(whole[result.name]), (layers, parts.summary(), whole.summary())
        return whole

    def cuts(self) -> tuple[int, ...]:
        """Ids that cut the root layer into ranges with a few roots each."""
        return tuple(self.nodes(self.data.layout.n_layers)[3::7])

    def row(self, node: int) -> RowView:
        key = keys.node_key(node)
        return self.table.read_rows([key])[key]

    def change(self, key: bytes, *changes: SetCell | DeleteCells) -> None:
        self.table.mutate([RowMutation(key, changes)])

    def rewrite(self, node: int, column: Column, value: object) -> None:
        """Replace the newest cell, at its own time."""
        cells = self.row(node).get(column.key)
        self.change(keys.node_key(node), column.set(value, cells[0].timestamp if cells else None))

    def write_voxels(self, voxel: Sequence[int], value: int, mip: int = 0) -> None:
        """Change one voxel of the fork, in a commit of its own."""
        store = self.data.fork.store()
        store.array(mip)[tuple(voxel)].write(np.uint64(value)).result()

    def erase(self, voxels: np.ndarray) -> None:
        """Set voxels (n, 3) of the fork to background."""
        store = self.data.fork.store().array(0)
        start, stop = voxels.min(axis=0), voxels.max(axis=0) + 1
        box = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
        block = np.array(store[box].read().result())
        block[tuple((voxels - start).T)] = 0
        store[box].write(block).result()

    def voxels_of(self, supervoxel: int) -> np.ndarray:
        """Voxels of a supervoxel, absolute, shape (n, 3)."""
        return np.argwhere(self.data.voxels == supervoxel) + self.data.grid.bounds.start

    def own_key(self, key: str, value: bytes) -> None:
        store = self.data.fork.store()
        store.kv.write(ocdbt.OWN_KEYS + key, value).result()

    def nodes(self, layer: int) -> list[int]:
        shift = 56
        return sorted(n for n in self.data.hierarchy.children if n >> shift == layer)


def divisions(n_layers: int) -> list[tuple[int, ...]]:
    """All divisions into layers: every choice of layers below the roots, ending with the layer below them."""
    lower = range(2, n_layers - 1)
    every = (itertools.combinations(lower, count) for count in range(len(lower) + 1))
    return [(*layers, n_layers - 1) for some in every for layers in some]


def found(result: CheckResult) -> tuple[object, ...]:
    """What a check found, without the order of its findings and the time that it took."""
    findings = sorted((f.severity, f.message, f.place, f.count) for f in result.findings)
    return result.name, result.passed, result.checked, result.skipped, findings


def copy_of(data: ReferenceDataset, folder: Path, table: Table) -> ReferenceDataset:
    """The same graph in another folder and table."""
    source = Path(data.watershed_url.removeprefix("file://"))
    shutil.copytree(source, folder)
    config = data.config.model_copy(
        update={"data_source": data.config.data_source.model_copy(update={"watershed": kv.as_url(folder)})}
    )
    table.mutate(
        RowMutation(key, [SetCell(column, cell.value, cell.timestamp) for column in row for cell in row[column]])
        for key, row in data.table.scan([EVERYTHING])
    )
    meta.write_meta(table, meta.from_config(config), overwrite=True)
    return replace(data, config=config, table=table)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> ReferenceDataset:
    folder = tmp_path_factory.mktemp("sound")
    table = SqliteTable("sound", str(folder / "tables"))
    table.create()
    labels = cells((48, 40, 36), 60, seed=1).labels
    objects = {label: label // 3 for label in range(1, 61)}
    return build_dataset(folder / "watershed", table, labels, objects, chunk_size=(8, 8, 8), voxel_offset=(16, 8, 3))


@pytest.fixture
def planted(sound: ReferenceDataset, tmp_path: Path) -> Planted:
    table = SqliteTable("planted", str(tmp_path / "tables"))
    table.create()
    return Planted(copy_of(sound, tmp_path / "watershed", table))


@pytest.fixture
def assert_names() -> Callable[..., None]:
    """Assert that a report names exactly one check, and that the place of a finding holds a text."""

    def check(report: VerifyReport, name: str, *places: object) -> None:
        assert report.failed == (name,), report.summary()
        assert not report.ok
        first = [finding.place for finding in report[name].errors]
        for place in places:
            assert any(str(place) in text for text in first), report.summary()

    return check
