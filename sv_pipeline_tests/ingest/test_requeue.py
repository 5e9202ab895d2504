"""A chunk that is built or written once more by its coordinates: the graph and its voxels stay what they were."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import ConfigError, ConflictError, NotReadyError
from sv_pipeline.ingest import progress, stages
from sv_pipeline.ingest.requeue import requeue_chunk
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, OPERATION_STATUS
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline_tests.graph.compare import dump
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine

ENDLESS = """
import sys
from sv_pipeline.ingest.requeue import requeue_chunk
from sv_pipeline.registry import open_dataset

dataset = open_dataset("tissue", sys.argv[1])
print("ready", flush=True)
while True:
    requeue_chunk(dataset, 2, (0, 0, 0))
    requeue_chunk(dataset, 3, (0, 0, 0))
"""


def built(folder: Path, method: str = "parts") -> Dataset:
    dataset = builds.register(builds.raw_config(folder, ocdbt_config={"populate_method": method}), folder / "home")
    builds.ingest(dataset)
    return dataset


def voxels_of(dataset: Dataset) -> np.ndarray:
    return np.asarray(dataset.fork.open()[dataset.grid.bounds.slices].read().result())


@pytest.mark.parametrize("method", ["parts", "direct", "reference"])
def test_every_chunk_can_be_written_again(tmp_path: Path, method: str) -> None:
    dataset = built(tmp_path, method)
    rows, voxels = dump(dataset.table), voxels_of(dataset)
    for layer in stages.layers_of(dataset):
        for coordinate in dataset.grid.coordinates(layer)[:4].tolist():
            report = requeue_chunk(dataset, layer, tuple(coordinate))
            assert (report.voxels is not None) == (layer == 3)
    assert dump(dataset.table) == rows
    assert np.array_equal(voxels_of(dataset), voxels)
    builds.assert_sound(dataset)


def test_a_lost_row_and_lost_voxels_come_back(tmp_path: Path) -> None:
    dataset = built(tmp_path)
    rows, voxels = dump(dataset.table), voxels_of(dataset)
    # Rows of a chunk are gone, and the base holds other voxels in a chunk.
    chunk = int(dataset.graph.layout.chunk_ids(2, (1, 0, 0)))
    lost = [key for key, _ in dataset.table.scan([keys.chunk_range(dataset.graph.layout, chunk)])]
    store = OcdbtStore(Base(dataset.watershed_url).info().spec())
    store.array(0)[dataset.grid.box(2, (1, 0, 0)).slices].write(np.uint64(0)).result()
    stages.make_fork(dataset, recreate=True)
    assert not np.array_equal(voxels_of(dataset), voxels)
    dataset.table.mutate(RowMutation(key, [DeleteCells(CHILDREN.key)]) for key in lost)
    assert dump(dataset.table) != rows
    requeue_chunk(dataset, 2, (1, 0, 0))
    requeue_chunk(dataset, 3, (0, 0, 0), mode=IngestMode.VOXELS)
    assert dump(dataset.table) == rows
    assert np.array_equal(voxels_of(dataset), voxels)
    builds.assert_sound(dataset)


def test_a_part_that_waits_for_its_merge_is_written_again(tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    for stage, finish in (("labels", stages.finish_labels), ("edges", stages.finish_edges)):
        for batch in stages.plan_watershed(dataset, stages.Stage(stage)):
            stages.run_batch(dataset, batch)
        finish(dataset)
    stages.setup(dataset)
    with pytest.raises(NotReadyError):
        requeue_chunk(dataset, 3, (0, 0, 0))  # the layer below is missing
    for coordinate in dataset.grid.coordinates(2).tolist():
        requeue_chunk(dataset, 2, tuple(coordinate))  # not done: it is built
    stages.finish_layer(dataset, 2)
    for _ in range(2):
        for coordinate in dataset.grid.coordinates(3).tolist():
            requeue_chunk(dataset, 3, tuple(coordinate))
    stages.finish_layer(dataset, 3)
    builds.ingest(dataset)
    source = open_volume(dataset.watershed_url)[dataset.grid.bounds.slices].read().result()
    assert np.array_equal(voxels_of(dataset), np.asarray(source))
    builds.assert_sound(dataset)
    builds.assert_nothing_leaked(dataset)


def test_an_edited_graph_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    dataset = built(tmp_path)
    dataset.table.mutate([RowMutation(keys.node_key(1), [OPERATION_STATUS.set(0)])])
    rows, generation = dump(dataset.table), dataset.fork.generation()
    for mode in (IngestMode.GRAPH, IngestMode.VOXELS):
        with pytest.raises(ConflictError, match="would lose the edits"):
            requeue_chunk(dataset, 3, (0, 0, 0), mode=mode)
    assert dump(dataset.table) == rows
    assert dataset.fork.generation() == generation


def test_edited_voxels_are_refused(tmp_path: Path) -> None:
    dataset = built(tmp_path)
    OcdbtStore(dataset.fork.spec()).array(0)[dataset.grid.box(2, (1, 0, 0)).slices].write(np.uint64(0)).result()
    with pytest.raises(ConflictError, match="voxels of graph 'tissue' were edited"):
        requeue_chunk(dataset, 3, (0, 0, 0))


def test_chunks_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    stages.plan_watershed(dataset, stages.Stage.LABELS)
    for layer, coordinate, said in ((9, (0, 0, 0), "no layer 9"), (2, (3, 0, 0), "3 x 2 x 2 chunks")):
        with pytest.raises(ConfigError, match=said):
            requeue_chunk(dataset, layer, coordinate)
    with pytest.raises(NotReadyError, match="no table yet"):
        requeue_chunk(dataset, 2, (0, 0, 0), mode=IngestMode.GRAPH)


def test_the_command_says_what_it_wrote(cli: CommandLine, tmp_path: Path) -> None:
    dataset = built(tmp_path)
    cli.home = tmp_path / "home"
    said = cli("requeue", "tissue", 3, 0, 0, 0)
    assert said.code == 0, said.err
    assert "wrote chunk (0, 0, 0) of layer 3 of tissue" in said.out
    assert "voxels at" in said.out
    assert cli("requeue", "tissue", 3, 7, 0, 0).code == 1
    assert progress.layer_status(dataset.graph)[3].complete


def test_killed_while_it_writes_a_chunk_again_nothing_is_lost(tmp_path: Path) -> None:
    dataset = built(tmp_path)
    without = (keys.COUNTS_SIGN,)  # they are counted anew after a kill
    rows, voxels = dump(dataset.table, without=without), voxels_of(dataset)
    for seconds in (0.05, 0.1, 0.2, 0.4):
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path / "home")], stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
    builds.ingest(dataset)  # makes the fork, if a kill came between its removal and its creation
    requeue_chunk(dataset, 3, (0, 0, 0))
    assert dump(dataset.table, without=without) == rows
    assert np.array_equal(voxels_of(dataset), voxels)
    builds.assert_sound(dataset)
