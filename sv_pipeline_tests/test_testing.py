"""What users test their own data with: the examples of its page, run as they are written, and what worlds promise."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sv_pipeline.config import parse_config
from sv_pipeline.errors import InputError
from sv_pipeline.testing.invariants import assert_sound
from sv_pipeline.testing.volumes import LabelledVolume, cells, crop, neuropil
from sv_pipeline.testing.worlds import build, configuration, small_world

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = configuration(neuropil((64, 64, 32), seed=5), tmp_path, "tissue", chunk_size=(32, 32, 16))
    Path("dataset.yaml").write_text(yaml.safe_dump(raw))
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 15
    assert not failed


def test_the_product_does_not_load_what_tests_need() -> None:
    code = "import sys, sv_pipeline.definitions, sv_pipeline.cli.main, sv_pipeline.proofreading\n"
    code += "print(*({'hypothesis', 'pytest', 'networkx', 'sv_pipeline.testing'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not said.stdout.split()


@pytest.mark.parametrize("given", ["source", "watershed"])
def test_a_crop_has_the_objects_of_the_whole(given: str, tmp_path: Path) -> None:
    """Voxels that one object of the crop joins are of one object of the whole: nothing is joined by the cutting."""
    whole = build(
        cells((40, 36, 24), 60, 3, labels_per_object=3, voxel_offset=(5, 7, 3)), tmp_path, chunk_size=(16,) * 3
    )
    raw = whole.dataset.config.model_dump(
        mode="json", by_alias=True, exclude={"source"} if given == "watershed" else {}
    )
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(raw))
    world = small_world(tmp_path / "d.yaml", tmp_path / "small", size=(20, 18, 12), at=(15, 17, 9))
    assert_sound(world.dataset)
    assert world.offset.tolist() == [15, 17, 9]
    box = tuple(slice(a, a + n) for a, n in zip((10, 10, 6), (20, 18, 12), strict=True))
    voxels, of_whole = world.voxels(), whole.voxels()
    assert np.array_equal(voxels > 0, of_whole[box] > 0)
    pairs = np.stack([world.objects(voxels).ravel(), whole.objects(of_whole)[box].ravel()])
    small, index = np.unique(pairs[0], return_inverse=True)
    assert all(len(np.unique(pairs[1][index == n])) == 1 for n in range(len(small)))


def test_tables_of_affinities_and_objects_may_name_labels_outside_the_crop(tmp_path: Path) -> None:
    import pandas as pd

    volume = cells((24, 24, 16), 40, 2)
    edges = pd.DataFrame({"label_a": np.arange(1, 40), "label_b": np.arange(2, 41), "affinity": 0.5})
    here = set(np.unique(volume.labels).tolist())
    edges = edges[edges["label_a"].isin(here) & edges["label_b"].isin(here)]
    raw = configuration(LabelledVolume(volume.labels, volume.objects, affinities=edges), tmp_path)
    assert {"agglomeration", "affinities"} <= raw["source"].keys()
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(raw))
    assert_sound(small_world(tmp_path / "d.yaml", tmp_path / "small", size=(8, 8, 8)).dataset)


def test_a_box_without_tissue_is_one_clear_error(tmp_path: Path) -> None:
    labels = np.zeros((32, 16, 16), np.uint32)
    labels[:8] = 3
    config = parse_config(configuration(LabelledVolume(labels), tmp_path))
    assert crop(config, (8, 8, 8), (0, 0, 0)).labels.all()
    with pytest.raises(InputError, match=r"nothing but background.*at"):
        crop(config, (8, 8, 8), (20, 0, 0))
    with pytest.raises(InputError, match=r"outside the volume.*at"):
        crop(config, (8, 8, 8), (32, 0, 0))


def test_edits_of_a_copy_leave_the_world_as_it_is(tmp_path: Path) -> None:
    world = build(cells((20, 16, 12), 12, 4), tmp_path)
    rows, voxels = world.rows(), world.voxels()
    objects = world.objects(voxels)
    one, other = (np.argwhere(objects == root)[0] + world.offset for root in np.unique(objects[objects > 0])[:2])
    kept = world.copied_to(tmp_path / "kept")
    with world.copied() as copy:
        for edited in (copy, kept):
            edited.open().merge([one.tolist()], [other.tolist()])
            assert_sound(edited.dataset)
            assert len(np.unique(edited.objects(voxels))) == len(np.unique(objects)) - 1
    assert (world.rows(), world.voxels().tolist()) == (rows, voxels.tolist())
    assert_sound(world.dataset)
    again = kept.copied_to(tmp_path / "again")
    assert np.array_equal(again.objects(voxels), kept.objects(voxels)), "a copy of everything has the edits too"
