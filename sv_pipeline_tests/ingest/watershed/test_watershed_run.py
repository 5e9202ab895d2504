"""Runs: in pieces, again, in several processes."""

from __future__ import annotations

import numpy as np
import pytest

from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.errors import InputError, NotReadyError
from sv_pipeline.ingest.watershed import (
    WatershedPass,
    edges_of_chunk,
    finish_labels,
    finish_watershed,
    label_chunk,
    pending,
    prepare_watershed,
    run_edge_batch,
    run_label_batch,
)
from sv_pipeline.storage import kv
from sv_pipeline_tests.ingest.watershed.helpers import Made, check, dataset, float_precomputed, make_watershed, written


@pytest.fixture(scope="module")
def neuropil(tmp_path_factory):
    """Files of a synthetic volume: segmentation and its agglomeration table."""
    folder = tmp_path_factory.mktemp("neuropil")
    volume = synthetic_neuropil((70, 60, 40), seed=1)
    np.savez(folder / "seg.npz", segmentation=volume.segmentation, resolution=volume.resolution)
    np.savez(folder / "table.npz", label=volume.labels, object=volume.objects)
    return folder


def config_of(neuropil, **options):
    options = {"resolution": None, "agglomeration": neuropil / "table.npz"} | options
    return dataset(neuropil / "seg.npz", (32, 32, 16), **options)


def content(config):
    keys = written(config)
    return dict(zip(keys, kv.read_many(config.data_source.watershed, keys), strict=True))


def test_stages_can_be_run_in_pieces_and_any_chunk_again(neuropil):
    whole = config_of(neuropil)
    report = make_watershed(whole)
    plan = prepare_watershed(config_of(neuropil))
    coordinates = plan.grid.coordinates(2)
    with pytest.raises(NotReadyError, match="supervoxels of chunk"):
        edges_of_chunk(plan, (0, 0, 0))
    run_label_batch(plan, coordinates[:5])
    assert len(pending(plan, WatershedPass.LABELS)) == len(coordinates) - 5
    with pytest.raises(NotReadyError, match="labels pass are not done"):
        finish_labels(plan)
    run_label_batch(prepare_watershed(plan.config), coordinates[4:])
    with pytest.raises(NotReadyError, match="objects of"):
        run_edge_batch(plan, coordinates[:1])
    finish_labels(plan)
    finish_labels(plan)
    run_edge_batch(plan, coordinates[::-1][:7])
    with pytest.raises(NotReadyError, match="edges pass are not done"):
        finish_watershed(plan)
    run_edge_batch(plan, coordinates)
    label_chunk(plan, coordinates[3])
    assert finish_watershed(plan) == report
    expected, found = content(whole), content(plan.config)
    assert expected.keys() == found.keys()
    # npz archives carry a time stamp
    assert {k for k in expected if expected[k] != found[k] and not k.endswith(".npz")} == set()


def test_a_worker_that_was_held_up_does_not_write_finished_chunks_again(neuropil):
    config = config_of(neuropil)
    make_watershed(config)
    folder = kv.open_kv(config.data_source.watershed)
    keys = written(config)
    before = [folder.read(key).result().stamp.generation for key in keys]
    plan = prepare_watershed(config)
    run_label_batch(plan, plan.grid.coordinates(2))
    assert [folder.read(key).result().stamp.generation for key in keys] == before


def test_a_second_run_does_nothing_and_a_lost_chunk_is_made_again(neuropil):
    config = config_of(neuropil)
    report = make_watershed(config)
    before = content(config)
    plan = prepare_watershed(config)
    assert not len(pending(plan, WatershedPass.LABELS))
    assert not len(pending(plan, WatershedPass.EDGES))
    assert make_watershed(config) == report
    kv.delete_prefix(config.data_source.watershed, ".watershed/edges/1_1_1")
    kv.delete_prefix(config.data_source.watershed, "edges/edges_1_1_1")
    assert pending(plan, WatershedPass.EDGES).tolist() == [[1, 1, 1]]
    assert make_watershed(config) == report
    assert content(config) == before


def test_processes_give_the_same_as_one(neuropil, tmp_path):
    one = Made(config_of(neuropil))
    several = Made(config_of(neuropil, target=str(tmp_path / "ws")), workers=2)
    assert one.report == several.report
    assert one.edges == several.edges
    np.testing.assert_array_equal(one.volume, several.volume)


def test_an_error_in_a_process_arrives_as_it_is(tmp_path):
    labels = np.full((9, 4, 4, 1), -1, np.int16)
    config = dataset(float_precomputed(tmp_path / "neg", labels, "int16"), target=str(tmp_path / "ws"))
    with pytest.raises(InputError, match=r"negative labels.*at least 0\.$"):
        make_watershed(config, workers=2)


def test_synthetic_neuropil_with_a_table(neuropil):
    labels = np.load(neuropil / "seg.npz")["segmentation"]
    objects = np.load(neuropil / "table.npz")["object"]
    check(Made(config_of(neuropil)), labels, objects[labels.astype(int) - 1])
