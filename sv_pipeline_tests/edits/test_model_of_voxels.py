"""Any sequence of edits of a graph with voxels agrees with the reference model, and all invariants hold."""

from __future__ import annotations

from functools import cache

import pytest

from sv_pipeline.testing.machines import edits_of, run
from sv_pipeline.testing.tables import Backend
from sv_pipeline.testing.volumes import LabelledVolume, cells
from sv_pipeline.testing.worlds import World, build, lasting_folder
from sv_pipeline_tests.edits.machines import AT_LENGTH, IN_CI, SHARDS_APART

VOLUMES: tuple[tuple[LabelledVolume, tuple[int, int, int]], ...] = (
    (cells((13, 20, 11), 9, 1, voxel_offset=(16, 8, 3)), (8, 8, 8)),
    (cells((8, 8, 8), 5, 2, labels_per_object=9), (8, 8, 8)),  # one chunk
    (cells((30, 7, 5), 8, 3, labels_per_object=3, voxel_offset=(5, 3, 1)), (8, 8, 8)),
    (cells((17, 15, 9), 3, 4, labels_per_object=1, voxel_offset=(3, 0, 100)), (8, 8, 8)),  # pieces in many chunks
    (cells((22, 9, 8), 30, 5, labels_per_object=6), (7, 5, 4)),
)


@cache
def world(number: int) -> World:
    volume, chunk_size = VOLUMES[number]
    return build(volume, lasting_folder(), chunk_size=chunk_size)


def run_machine(backend: Backend, number: int, runs: int) -> None:
    machine = edits_of(world(number % len(VOLUMES)), backend)
    run(machine, runs=runs, steps=30, seed=number * SHARDS_APART if IN_CI else None)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20 if AT_LENGTH else 5))
def test_edits_agree_with_a_plain_model_on_sqlite(number: int) -> None:
    run_machine("sqlite", number, 8 if AT_LENGTH else 3 if IN_CI else 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5 if AT_LENGTH else 2))
def test_edits_agree_with_a_plain_model_on_bigtable(bigtable_emulator: str, number: int) -> None:
    run_machine("bigtable", number, 8 if AT_LENGTH else 3 if IN_CI else 1)
