"""The image of a dataset: checked when the graph is registered, and read from all of its mips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

from sv_pipeline.config import parse_config
from sv_pipeline.errors import ConfigError, InputError
from sv_pipeline.grid import Box
from sv_pipeline.ingest import stages
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.testing.worlds import World
from sv_pipeline.viewer.image import image_of
from sv_pipeline_tests.ingest import builds


def write_image(folder: Path, encoding: str) -> np.ndarray:
    """Write a precomputed image with two mips, which begins at (10, 20, 30); its voxels."""
    image = np.full((64, 32, 16), 200, np.uint8)
    image[:32] = 50
    for array, scale, offset in ((image, 1, (10, 20, 30)), (image[::2, ::2], 2, (5, 10, 30))):
        scales = {"resolution": [8 * scale, 8 * scale, 40], "encoding": encoding, "size": list(array.shape)}
        spec: dict[str, Any] = {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{folder}/",
            "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
            "scale_metadata": {**scales, "chunk_size": [16, 16, 16], "voxel_offset": list(offset)},
        }
        ts.open(spec, create=True, open=True).result()[..., 0].write(array).result()
    return image


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_precomputed_image_is_read_from_all_its_mips(built: World, tmp_path: Path, encoding: str) -> None:
    image = write_image(tmp_path / "em", encoding)
    config = built.dataset.config.model_copy(update={"image": str(tmp_path / "em")})
    found = image_of(Dataset(config, built.dataset.home))
    assert found is not None
    assert [mip.factor for mip in found.mips] == [(1, 1, 1), (2, 2, 1)]
    assert found.resolution == (8.0, 8.0, 40.0)
    assert found.bounds == Box((10, 20, 30), (74, 52, 46))
    whole = found.read(Box((0, 0, 0), (64, 32, 16)))
    assert np.abs(whole.astype(int) - image).max() < 5
    coarse = found.read(Box((0, 0, 0), (32, 16, 16)), (2, 2, 1))
    assert np.abs(coarse.astype(int) - image[::2, ::2]).max() < 5
    (tmp_path / "em" / "8_8_40").rename(tmp_path / "hidden")  # far views do not read mip 0
    assert np.array_equal(found.read(Box((0, 0, 0), (32, 16, 16)), (2, 2, 1)), coarse)


def test_a_dataset_without_an_image_has_none(built: World) -> None:
    assert image_of(built.dataset) is None


@pytest.mark.parametrize(
    "given", ["missing", "missing.npy", '{"driver": "zarr", "kvstore": "file:///nowhere/at/all/"}']
)
def test_an_image_that_cannot_be_opened_is_refused_before_anything_is_written(tmp_path: Path, given: str) -> None:
    image = given if given.startswith("{") else str(tmp_path / given)
    with pytest.raises(InputError):
        builds.register(builds.raw_config(tmp_path, image=image), tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_an_image_with_several_channels_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rgb.npy", np.zeros((8, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="dimensions"):
        builds.register(builds.raw_config(tmp_path, image=str(tmp_path / "rgb.npy")), tmp_path / "home")


def test_an_image_that_is_no_place_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image"):
        parse_config(builds.raw_config(tmp_path, image="ftp://host/em"))


def test_the_image_may_change_and_its_path_is_stored_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = builds.raw_config(tmp_path)
    stages.register(parse_config(raw), str(tmp_path / "home"))
    np.save(tmp_path / "em.npy", np.zeros((8, 8, 8), np.uint8))
    stages.register(parse_config({**raw, "image": "em.npy"}), str(tmp_path / "home"))
    stored = json.loads((tmp_path / "home" / "graphs" / "tissue.json").read_text())
    assert stored["image"] == str(tmp_path / "em.npy")
    assert Registry(str(tmp_path / "home")).get("tissue").config.image == stored["image"]
