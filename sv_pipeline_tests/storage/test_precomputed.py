"""Neuroglancer precomputed volumes: what we write, others read, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from sv_pipeline.errors import ConfigError, InputError, NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import create_volume, info_json, open_volume, parse_info, read_info
from sv_pipeline_tests.segmentation.volumes import blobs

SIZE, OFFSET = (70, 45, 37), (5, -7, 3)


def make(url: str | Path, **changes: object) -> None:
    arguments = {"resolution": (8, 8, 40), "voxel_offset": OFFSET, "size": SIZE, "chunk_size": (32, 32, 16), **changes}
    create_volume(url, **arguments)  # type: ignore[arg-type]


def test_a_volume_is_written_and_read_in_absolute_coordinates(storage_url: str) -> None:
    make(storage_url, n_mips=2)
    labels = blobs(SIZE)
    open_volume(storage_url, writable=True).write(labels).result()
    info = read_info(storage_url)
    assert info.bounds == Box.of(OFFSET, np.add(OFFSET, SIZE))
    assert info.factors(1) == (2, 2, 1)
    store = open_volume(storage_url)
    assert store.domain.labels == ("x", "y", "z")
    assert store[5:7, -7, 3].read().result().tolist() == labels[0:2, 0, 0].tolist()
    with pytest.raises(IndexError):
        store[0, 0, 0].read().result()


def test_cloud_volume_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    cloudvolume = pytest.importorskip("cloudvolume")
    labels = blobs(SIZE)
    make(tmp_path / "ours", n_mips=3)
    open_volume(tmp_path / "ours", writable=True).write(labels).result()
    theirs = cloudvolume.CloudVolume(f"file://{tmp_path}/ours", fill_missing=True, progress=False)
    np.testing.assert_array_equal(np.asarray(theirs[:])[..., 0], labels)
    for mip in range(3):
        scale = read_info(tmp_path / "ours").scales[mip]
        assert tuple(theirs.mip_voxel_offset(mip)) == scale.voxel_offset
        assert tuple(theirs.mip_volume_size(mip)) == scale.size

    info = cloudvolume.CloudVolume.create_new_info(
        1, "segmentation", "uint64", "compressed_segmentation", (8, 8, 40), OFFSET, SIZE, chunk_size=(32, 32, 16)
    )
    written = cloudvolume.CloudVolume(f"file://{tmp_path}/theirs", info=info, compress=False, progress=False)
    written.add_scale((2, 2, 1))
    written.add_scale((4, 4, 2))
    written.commit_info()
    written[:] = labels
    np.testing.assert_array_equal(open_volume(tmp_path / "theirs").read().result(), labels)
    # The geometry of the mips is cloud-volume's.
    ours = create_volume(tmp_path / "same", resolution=(8, 8, 40), voxel_offset=OFFSET, size=SIZE, chunk_size=(8, 8, 8))
    del ours
    for mip, factor in ((1, (2, 2, 1)), (2, (4, 4, 2))):
        scale = read_info(tmp_path / "theirs").scales[mip]
        assert read_info(tmp_path / "theirs").factors(mip) == factor
        assert scale.voxel_offset == tuple(np.floor_divide(OFFSET, factor))
        assert scale.size == tuple(-(-np.array(SIZE) // factor))


def test_an_info_survives_being_written(tmp_path: Path) -> None:
    make(tmp_path, n_mips=4, resolution=(4.5, 4.5, 45))
    info = read_info(tmp_path)
    assert parse_info(json.loads(json.dumps(info_json(info)))) == info
    assert info.scales[0].key == "4.5_4.5_45"
    opened = ts.open({"driver": "neuroglancer_precomputed", "kvstore": kv.as_url(tmp_path), "scale_index": 3}).result()
    assert opened.domain.shape[:3] == info.scales[3].size


def test_a_missing_volume_and_a_missing_mip_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no volume at"):
        read_info(tmp_path / "nowhere")
    make(tmp_path)
    with pytest.raises(NotFoundError, match="no mip 1"):
        open_volume(tmp_path, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "not a usable"),
        (b"[]", "not a usable"),
        (b'{"data_type": "uint64"}', "scales"),
        (b'{"data_type": "uint64", "scales": []}', "no scales"),
        (b'{"data_type": "float32", "scales": []}', "float32"),
        (b'{"data_type": "uint64", "num_channels": 3, "scales": []}', "3 channels"),
    ],
)
def test_a_broken_info_is_an_input_error_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "info").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_info(tmp_path)
    assert f"{tmp_path}/info" in str(caught.value)


def test_mips_that_are_no_multiples_are_refused(tmp_path: Path) -> None:
    make(tmp_path, n_mips=2)
    info = json.loads((tmp_path / "info").read_text())
    info["scales"][1]["resolution"] = [12, 12, 40]
    (tmp_path / "info").write_text(json.dumps(info))
    with pytest.raises(InputError, match="not a multiple"):
        read_info(tmp_path)


def test_impossible_volumes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="uint8"):
        make(tmp_path, data_type="uint8")
    with pytest.raises(ConfigError, match="positive"):
        make(tmp_path, size=(0, 1, 1))
