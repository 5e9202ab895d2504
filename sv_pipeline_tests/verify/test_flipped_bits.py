"""A bit that is flipped in a file of an edited fork, and that changes any voxel of any mip, is named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.edits import Points
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.operations.log import read_operations
from sv_pipeline.pyramid.downsample import downsample
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.fork.digests import DIGESTS, chunks_in, digest_writer
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.context import reset_context
from sv_pipeline.storage.reachable import reachable
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import DeleteCells, RowMutation, SetCell
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.volumes import cells
from sv_pipeline.verify import postcheck
from sv_pipeline.verify.dataset import verify_changes
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.reference_data import build_dataset

FLIPS = 60
EVERYWHERE = (10_000, 10_000, 10_000)
CHECKS = ["voxels", "fork", "pair", "digests", "lineage", "pyramid"]


@dataclass(frozen=True)
class EditedFork:
    """A graph with supervoxel splits, some of them undone, some of them in the coarser mips."""

    graph: ChunkedGraph
    folder: Path
    """Of the fork."""
    before: list[np.ndarray]

    @property
    def values(self) -> list[tuple[Path, int, int]]:
        """What the latest generation refers to in the fork's own files: file, first byte, last."""
        base = self.graph.fork.store().base
        own = self.graph.graph_id + "_d/"
        extents = [e for e in reachable(base).values if e.file.startswith(own)]
        return sorted((self.folder / e.file, e.start, e.start + e.length) for e in extents)

    def volumes(self) -> list[np.ndarray]:
        """All mips."""
        mips = self.graph.fork.base.info().n_mips
        found = [self.graph.fork.open(mip) for mip in range(mips)]
        return [np.asarray(volume.read().result()) for volume in found]

    def unchanged(self) -> bool:
        """Whether all mips can be read, and are as they were."""
        reset_context()
        try:
            return all(np.array_equal(a, b) for a, b in zip(self.volumes(), self.before, strict=True))
        except (ValueError, SvPipelineError):
            return False

    def verify(self, checks: list[str] = CHECKS) -> VerifyReport:
        reset_context()
        return verify(
            self.graph.table,
            self.graph.fork,
            checks=checks,
        )


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditedFork]:
    folder = tmp_path_factory.mktemp("flips")
    table = SqliteTable("t", folder / "tables")
    table.create()
    labels = cells((40, 36, 30), 14, seed=5).labels
    objects = {label: label // 2 for label in range(1, 15)}
    # Voxels of these small chunks would else be stored inside the tree, which has checksums.
    inline = {"max_inline_value_bytes": 100, "max_decoded_node_bytes": 16384}
    data = build_dataset(folder / "ws", table, labels, objects, chunk_size=(16, 16, 16), graph_id="g", ocdbt=inline)
    graph = open_chunked_graph(table)
    made = [split_somewhere(graph, seed) for seed in range(3)]
    edits.undo(graph, made[0], "tester")
    downsample(Fork(data.watershed_url, "g"), table=table)
    split_somewhere(graph, 3)  # its coarser mips are behind
    found = EditedFork(graph, folder / "ws" / "ocdbt" / "g", [])
    yield EditedFork(graph, found.folder, found.volumes())
    table.close()


def split_somewhere(graph: ChunkedGraph, seed: int) -> int:
    """Split a supervoxel between two of its voxels; the operation."""
    rng, volume = np.random.default_rng(seed), graph.fork.open()
    voxels = np.asarray(volume.read().result())
    ids, sizes = np.unique(voxels[voxels > 0], return_counts=True)
    while True:
        source, sink = rng.permutation(np.argwhere(voxels == rng.choice(ids[sizes > 200])))[:2].tolist()
        sides = Points.of(coordinates=[source]), Points.of(coordinates=[sink])
        request = edits.SplitRequest("tester", *sides, EVERYWHERE, disallow_isolating_cut=False)
        try:
            return edits.split(graph, request, volume=volume).operation_id
        except edits.EditRefused:
            continue


def flip(path: Path, byte: int, bit: int) -> bytes:
    """Flip one bit; what was there before."""
    before = path.read_bytes()
    content = bytearray(before)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return before


def test_nothing_is_named_before(edited: EditedFork) -> None:
    report = edited.verify()
    assert report.ok, report.summary()
    assert not report.findings, report.summary()
    assert report["digests"].checked > 20
    store = Fork(edited.graph.watershed_url, "g").store()
    mips = {key.decode().removeprefix(DIGESTS)[0] for key in store.kv.list().result() if DIGESTS.encode() in key}
    assert {"0", "1"} <= mips


def test_every_flip_that_changes_a_voxel_is_named(edited: EditedFork) -> None:
    rng = np.random.default_rng(1)
    values, files = edited.values, sorted((edited.folder / "g_d").rglob("*"))
    files = [path for path in files if path.is_file()]
    changed, missed = 0, []
    for number in range(FLIPS):
        if number % 6:  # a value that readers see
            path, first, stop = values[rng.integers(len(values))]
            byte = int(rng.integers(first, stop))
        else:  # anything: nodes of the tree, values of older generations
            path = files[rng.integers(len(files))]
            byte = int(rng.integers(path.stat().st_size))
        bit = int(rng.integers(8))
        before = flip(path, byte, bit)
        try:
            if not edited.unchanged():
                changed += 1
                report = edited.verify()
                if report.ok:
                    missed.append((path.name, byte, bit))
        finally:
            path.write_bytes(before)
    assert edited.unchanged()
    assert changed > FLIPS // 3
    assert not missed, f"{len(missed)} of {changed} were not named"


def test_a_look_at_what_operations_changed_finds_bits_and_rows(
    edited: EditedFork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postcheck, "SECONDS_BETWEEN_LOOKS", 0.01)
    graph = edited.graph
    dataset = SimpleNamespace(graph=graph, fork=graph.fork)
    last = counters.last_operation_id(graph.table)
    report = verify_changes(dataset, 0)  # type: ignore[arg-type]
    assert report.ok, report.summary()
    assert report["operations"].checked >= 4
    assert not verify_changes(dataset, last)["digests"].checked  # type: ignore[arg-type]
    changed = graph.fork.record(last)
    assert changed is not None
    (root,) = read_operations(graph, [last])[0].roots[:1]
    key = keys.node_key(int(root))
    row = graph.table.read_rows([key])[key]
    cells = [SetCell(columns.CHILDREN.key, cell.value, cell.timestamp) for cell in row[columns.CHILDREN.key]]
    graph.table.mutate([RowMutation(key, [DeleteCells(columns.CHILDREN.key)])])
    try:
        assert "operations" in verify_changes(dataset, last - 1).failed  # type: ignore[arg-type]
    finally:
        graph.table.mutate([RowMutation(key, cells)])
    found = []
    for path, first, stop in edited.values:
        before = flip(path, (first + stop) // 2, 3)
        reset_context()
        try:
            found.append("digests" in verify_changes(dataset, last - 1).failed)  # type: ignore[arg-type]
        finally:
            path.write_bytes(before)
    reset_context()
    assert len(changed.boxes) <= sum(found) < len(found)


def test_digests_alone_name_every_flip_of_a_value(edited: EditedFork) -> None:
    """Also what an equal id beside it, or a pending box, would hide from all other checks."""
    rng = np.random.default_rng(2)
    values = edited.values
    for _ in range(FLIPS // 3):
        path, first, stop = values[rng.integers(len(values))]
        before = flip(path, int(rng.integers(first, stop)), int(rng.integers(8)))
        try:
            if not edited.unchanged():
                report = edited.verify(["digests"])
                assert not report.ok
                assert "damaged" in report["digests"].errors[0].message or "read" in report["digests"].errors[0].message
        finally:
            path.write_bytes(before)


def test_a_flip_of_the_base_is_named_by_the_check_of_the_base(edited: EditedFork) -> None:
    """Digests are of what edits write; the base is compared with the watershed."""
    rng, url = np.random.default_rng(3), edited.graph.watershed_url
    folder = Path(ocdbt.base_folder(url).removeprefix("file://"))

    def read() -> np.ndarray | None:
        reset_context()
        try:
            return np.asarray(ocdbt.OcdbtStore(Base(url).info().spec()).array(0).read().result())
        except ValueError:
            return None

    sound = read()
    values = sorted(
        (folder / e.file, e.start, e.length) for e in reachable(ocdbt.OcdbtStore(Base(url).info().spec()).base).values
    )
    changed = 0
    for _ in range(10):
        path, first, length = values[rng.integers(len(values))]
        before = flip(path, first + int(rng.integers(length)), int(rng.integers(8)))
        try:
            if not np.array_equal(read(), sound):
                changed += 1
                assert edited.verify(["base"]).failed == ("base",)
        finally:
            path.write_bytes(before)
    assert changed


def test_other_software_that_writes_the_fork_is_told_from_damage(edited: EditedFork, tmp_path: Path) -> None:
    graph = edited.graph
    kept = tmp_path / "fork"
    shutil.copytree(edited.folder, kept)
    store = graph.fork.store()
    key = next(k.decode() for k in store.kv.list().result() if k.startswith(f"{DIGESTS}0/".encode()))
    number = np.array(key.rpartition("/")[2].split("_"), int)
    corner = number * 16
    array = store.array(0)
    stop = np.minimum(corner + 16, array.domain.exclusive_max)
    place = tuple(slice(a, b) for a, b in zip(corner.tolist(), stop.tolist(), strict=True))
    block = np.asarray(array[place].read().result())
    assert not np.array_equal(block, block[::-1, ::-1])
    array[place].write(block[::-1, ::-1]).result()
    try:
        result = edited.verify(["digests"])["digests"]
        assert not result.errors
        (warning,) = result.warnings
        assert "other software" in warning.message
    finally:
        shutil.rmtree(edited.folder)
        shutil.copytree(kept, edited.folder)
        reset_context()


def test_damage_that_was_written_again_with_a_digest_of_its_own_breaks_the_lineage(
    edited: EditedFork, tmp_path: Path
) -> None:
    graph = edited.graph
    kept = tmp_path / "fork"
    shutil.copytree(edited.folder, kept)
    volume, store = graph.fork.base.info().volume, graph.fork.store()
    assert edited.verify(["lineage"]).ok
    chunk = chunks_in(0, volume.scales[0], volume.bounds)[0]
    box = chunk.box(volume.scales[0])
    voxels = np.asarray(store.array(0)[box.slices].read(order="F").result())
    ids = np.unique(voxels[voxels > 0])
    voxels[voxels == ids[0]] = ids[1]
    with store.transaction() as transaction, digest_writer(volume) as digests:
        store.array(0).with_transaction(transaction)[box.slices].write(voxels).result()
        digests.add(VoxelBlock(box, voxels))
        digests.write(store.kv.with_transaction(transaction))
    try:
        report = edited.verify(["digests", "lineage"])
        assert report["digests"].passed
        assert "does not descend" in report["lineage"].errors[0].message
    finally:
        shutil.rmtree(edited.folder)
        shutil.copytree(kept, edited.folder)
        reset_context()
