"""Volumes that other software has written: what lies on storage is what is read, or it is refused."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any
from uuid import uuid4

import cloudvolume
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.errors import InputError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.layout import own_keys, plan_scales
from sv_pipeline.storage import coverage as coverages
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.compressed_files import read_files
from sv_pipeline.storage.context import process_context
from sv_pipeline.storage.coverage import check_coverage, coverage
from sv_pipeline.storage.precomputed import create_volume, open_volume, read_info, stored_scale
from sv_pipeline.storage.volume_info import Scale, VolumeInfo, parse_info
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.segmentation.volumes import Watershed, assert_base_holds, blobs, expected_pyramid

SIZE, OFFSET, CHUNK = (40, 35, 20), (4, 8, 3), (16, 16, 16)
Triple = tuple[int, int, int]


def by_cloud_volume(folder: Path, labels: np.ndarray, compress: Any, encoding: str = "raw") -> str:
    """A volume as cloud-volume writes it on a local disk."""
    info = cloudvolume.CloudVolume.create_new_info(
        1, "segmentation", labels.dtype.name, encoding, (8, 8, 40), OFFSET, labels.shape, chunk_size=CHUNK
    )
    volume = cloudvolume.CloudVolume(f"file://{folder}", info=info, compress=compress, progress=False)
    volume.commit_info()
    volume[:] = labels
    return kv.as_url(folder)


def change_info(url: str, **changes: Any) -> None:
    """Change fields of the first scale, or of the top for names that begin with a capital."""
    info = json.loads(kv.read_bytes(url, "info") or b"")
    for name, value in changes.items():
        (info if name in info else info["scales"][0])[name] = value
    kv.write_bytes(url, "info", json.dumps(info).encode())


# -- chunk files that are compressed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
@pytest.mark.parametrize("compress", [True, "br", "zstd", "xz", "bzip2", False])
def test_what_cloud_volume_writes_on_a_disk_is_read(tmp_path: Path, compress: Any, encoding: str) -> None:
    labels = blobs(SIZE)
    url = by_cloud_volume(tmp_path, labels, compress, encoding)
    store = open_volume(url)
    np.testing.assert_array_equal(store.read().result(), labels)
    box = Box.of(np.add(OFFSET, (3, 14, 5)), np.add(OFFSET, (18, 35, 17)))
    np.testing.assert_array_equal(store[box.slices].read().result(), labels[3:18, 14:35, 5:17])
    assert store.domain.inclusive_min == OFFSET
    assert coverage(stored_scale(url)).missing == 0


def test_a_compressed_chunk_that_is_broken_or_there_twice_is_named(tmp_path: Path) -> None:
    url = by_cloud_volume(tmp_path, blobs(SIZE), True)
    first = min((tmp_path / "8_8_40").iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{first.name} cannot be decompressed"):
        open_volume(url).read().result()
    first.write_bytes(whole)
    first.with_suffix("").write_bytes(b"stale")
    with pytest.raises(InputError, match="out of date"):
        open_volume(url).read().result()
    with pytest.raises(InputError, match="two forms"):
        coverage(stored_scale(url))


def test_single_files_are_found_under_a_compressed_name(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.proto").write_bytes(b"plain")
    (tmp_path / "b.proto.gz").write_bytes(gzip.compress(b"packed"))
    assert read_files(kv.as_url(tmp_path), ["a.proto", "b.proto", "c.proto"]) == [b"plain", b"packed", None]


# -- info files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"data_type": "UINT64"},
        {"encoding": "Compressed_Segmentation"},
        {"key": "./8_8_40"},
        {"key": "x/..//8_8_40/"},
        {"chunk_sizes": [list(CHUNK), [8, 8, 8]]},
    ],
)
def test_an_info_in_other_words_gives_the_same_volume(tmp_path: Path, changes: dict[str, Any]) -> None:
    create_volume(tmp_path, resolution=(8, 8, 40), voxel_offset=OFFSET, size=SIZE, chunk_size=CHUNK)
    url, labels = kv.as_url(tmp_path), blobs(SIZE)
    open_volume(url, writable=True).write(labels).result()
    change_info(url, **changes)
    np.testing.assert_array_equal(open_volume(url).read().result(), labels)
    assert coverage(stored_scale(url)).missing == 0


WRONG = {
    "data_type": (7, None, "float32"),
    "num_channels": (0, "x", 2),
    "scales": ({}, ["x"], None),
    "key": ("", "/etc", "..", 7, "a\0b"),
    "resolution": ([8, 8], [0, 8, 8], [float("nan"), 8, 8], "8 8 8"),
    "size": ([0, 1, 1], [1.5, 1, 1], [10**30, 1, 1], [True, 1, 1]),
    "voxel_offset": (None, [0.5, 0, 0], [2**62, 0, 0]),
    "chunk_sizes": ([], [16, 16, 16], [[0, 16, 16]]),
    "encoding": (None, 7, ""),
    "compressed_segmentation_block_size": ([0, 8, 8], "8"),
    "sharding": ("x", 7),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, field: str, value: Any) -> None:
    create_volume(tmp_path, resolution=(8, 8, 40), voxel_offset=OFFSET, size=SIZE, chunk_size=CHUNK)
    change_info(kv.as_url(tmp_path), **{field: value})
    with pytest.raises(InputError, match=f"{tmp_path}/info: .*{field}"):
        read_info(tmp_path)


# -- keys --------------------------------------------------------------------------------------------------------------

names = st.one_of(
    st.sampled_from(
        ["8_8_40", "16_16_40", "32_32_40", "8_8_40_2", "mip_0", "mip_1", "info", "_sv_pipeline", "a/b", "A"]
    ),
    st.text("ab8_./ %é", min_size=1, max_size=8),
)


@given(st.lists(names, min_size=1, max_size=6))
def test_every_mip_of_a_base_has_a_folder_of_its_own(wanted: list[str]) -> None:
    keys = own_keys(wanted)
    assert len({key.lower() for key in keys}) == len(wanted)
    for key in keys:
        assert posixpath.normpath(posixpath.join("seg", key)) == f"seg/{key}"
        assert "/" not in key
        assert key not in ("info", "_sv_pipeline", ".", "..")


@examples(10)
@given(st.lists(names, min_size=2, max_size=3), st.sampled_from([None, 4]))
def test_mip_0_is_unharmed_whatever_the_keys_are(wanted: list[str], mips: int | None) -> None:
    url = f"memory://keys_{uuid4().hex}/"
    size, chunk = (20, 18, 6), (8, 8, 8)
    volume = create_volume(
        url, resolution=(8, 8, 40), voxel_offset=(4, 8, 3), size=size, chunk_size=chunk, n_mips=len(wanted)
    )
    info = json.loads(kv.read_bytes(url, "info") or b"")
    for scale, key in zip(info["scales"], wanted, strict=True):
        scale["key"] = key
    try:
        parsed = parse_info(info)
    except InputError:
        return  # two keys that are one folder, or none: refused
    for scale, normal in zip(info["scales"], parsed.scales, strict=True):
        scale["key"] = normal.key
    kv.write_bytes(url, "info", json.dumps(info).encode())
    labels = blobs(size)
    for mip in range(len(wanted)):
        spec = {"driver": "neuroglancer_precomputed", "kvstore": url, "scale_index": mip}
        store = ts.open(spec, open=True, context=process_context()).result()
        store[..., 0].write(labels[:: 2**mip, :: 2**mip]).result()
    watershed = Watershed(url, labels, ChunkGrid(volume.bounds, chunk), OcdbtConfig(populate_layer=2, mips=mips))
    watershed.populate()
    np.testing.assert_array_equal(ocdbt.OcdbtStore(Base(url).info().spec()).array(0).read().result(), labels)
    assert coverage(stored_scale(url)).missing == 0


def test_a_made_mip_keeps_out_of_the_folder_of_a_given_one() -> None:
    volume = VolumeInfo("uint64", (Scale("8_8_40", (4.0, 4.0, 40.0), (0, 0, 0), (200, 200, 20), (16, 16, 16)),))
    assert [scale.key for scale in plan_scales(volume, OcdbtConfig(mips=3), None)] == ["8_8_40", "8_8_40_2", "16_16_40"]


# -- given mips --------------------------------------------------------------------------------------------------------


@examples(12)
@given(
    st.tuples(*[st.integers(-6, 6)] * 3),
    st.tuples(*[st.integers(17, 36)] * 2, st.integers(3, 9)),
    st.sampled_from(["ours", "world", "unwritten", "shifted", "half"]),
)
def test_given_mips_are_those_of_our_grid_or_made_anew(offset: Triple, size: Triple, kind: str) -> None:
    url = f"memory://mips_{uuid4().hex}/"
    create_volume(url, resolution=(8, 8, 40), voxel_offset=offset, size=size, chunk_size=(8, 8, 8))
    labels = blobs(size, n_labels=200)
    open_volume(url, writable=True).write(labels).result()
    give_mip(url, kind, labels)
    watershed = Watershed(
        url, labels, ChunkGrid(read_info(url).bounds, (16, 16, 16)), OcdbtConfig(populate_layer=3, mips=3)
    )
    base = watershed.populate().base
    store = ocdbt.OcdbtStore(Base(url).info().spec())
    for mip, expected in enumerate(expected_pyramid(base, labels)):
        have = store.array(mip).read().result()
        if mip < base.source_mips:
            assert kind != "unwritten" or mip == 0
            given_labels = open_volume(url, mip).read().result()
            np.testing.assert_array_equal(have, given_labels)
        elif base.source_mips == 1:
            np.testing.assert_array_equal(have, expected)
    if base.source_mips == 1:
        assert base.remade
        assert Base(url).info().remade == base.remade


def give_mip(url: str, kind: str, labels: np.ndarray) -> None:
    """Add a mip 1 of halves in x and y, laid out in some way."""
    fine = open_volume(url)
    if kind == "world":
        view = ts.downsample(fine, [2, 2, 1], method="stride")
        start, stored = tuple(view.domain.inclusive_min), np.asarray(view.read().result())
    else:
        start = tuple(int(v) for v in np.floor_divide(fine.domain.inclusive_min, (2, 2, 1)))
        stored = labels[::2, ::2]
        if kind == "shifted":
            stored = np.roll(stored, 1, axis=0)
        if kind == "half":
            stored = stored[:, : stored.shape[1] // 2]
    info = json.loads(kv.read_bytes(url, "info") or b"")
    scale = {**info["scales"][0], "key": "16_16_40", "resolution": [16, 16, 40], "size": list(stored.shape)}
    info["scales"].append({**scale, "voxel_offset": list(start)})
    kv.write_bytes(url, "info", json.dumps(info).encode())
    if kind != "unwritten":
        open_volume(url, 1, writable=True).write(stored).result()


# -- missing chunks ----------------------------------------------------------------------------------------------------


def sharded(folder: Path, labels: np.ndarray) -> str:
    """A sharded volume; chunks of background only are not stored."""
    url = kv.as_url(folder)
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": url,
        "multiscale_metadata": {"type": "segmentation", "data_type": "uint64", "num_channels": 1},
        "scale_metadata": {
            "size": labels.shape,
            "encoding": "raw",
            "chunk_size": CHUNK,
            "resolution": [8, 8, 40],
            "voxel_offset": OFFSET,
            "sharding": {
                "@type": "neuroglancer_uint64_sharded_v1",
                "preshift_bits": 1,
                "minishard_bits": 1,
                "shard_bits": 2,
                "hash": "identity",
            },
        },
    }
    ts.open(spec, create=True).result()[..., 0].write(labels).result()
    return url


@pytest.mark.parametrize("form", ["plain", "gz", "sharded"])
@pytest.mark.parametrize("listed", [True, False])
def test_missing_chunks_are_counted(tmp_path: Path, form: str, listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not listed:
        monkeypatch.setattr(coverages, "MOST_LISTED", 1)
    labels = blobs(SIZE)
    if form == "sharded":
        labels[:16, :16, :16] = 0
        labels[16:32, :16, 16:] = 0
        url = sharded(tmp_path, labels)
    else:
        url = by_cloud_volume(tmp_path, labels, form == "gz")
        suffix = ".gz" if form == "gz" else ""
        for name in ("4-20_8-24_3-19", "20-36_8-24_19-23"):
            (tmp_path / "8_8_40" / (name + suffix)).unlink()
    found = coverage(stored_scale(url))
    assert (found.expected, found.looked_for, found.missing) == (18, 18, 2)
    assert found.example == "4-20_8-24_3-19"
    assert coverage(stored_scale(url), Box((0, 0, 0), (6, 10, 4))).expected == 1
    check_coverage(found, "f")


@pytest.mark.parametrize(("expected", "few"), [(1, 0), (7, 0), (8, 1), (18, 2), (1000, 3), (10**6, 3)])
def test_more_than_a_few_missing_chunks_are_refused(expected: int, few: int) -> None:
    check_coverage(coverages.Coverage("c", expected, expected, few), "data_source.FILL_MISSING")
    with pytest.raises(InputError, match=r"background.*data_source\.FILL_MISSING: true"):
        check_coverage(coverages.Coverage("c", expected, expected, few + 1, "x"), "data_source.FILL_MISSING")


def test_what_we_write_is_complete_even_where_it_is_background(tmp_path: Path) -> None:
    create_volume(tmp_path, resolution=(8, 8, 40), voxel_offset=OFFSET, size=SIZE, chunk_size=CHUNK)
    open_volume(tmp_path, writable=True).write(np.uint64(0)).result()
    assert coverage(stored_scale(tmp_path)).missing == 0


def test_a_base_of_a_compressed_watershed_holds_all_its_voxels(tmp_path: Path) -> None:
    labels = blobs(SIZE)
    url = by_cloud_volume(tmp_path, labels, True, "compressed_segmentation")
    watershed = Watershed(url, labels, ChunkGrid(read_info(url).bounds, CHUNK), OcdbtConfig(populate_layer=2))
    Base(url).create(watershed.config, watershed.grid)
    assert_base_holds(watershed, watershed.populate())
