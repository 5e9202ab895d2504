"""Bases that refer to the watershed's own chunks: what qualifies, what is copied, and what a change of it does."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.errors import ConfigError, DamagedError, InputError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base import parts
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.key_ranges import key_ranges
from sv_pipeline.segmentation.base.populate import finish_populate
from sv_pipeline.segmentation.base.source_record import changes_of_source
from sv_pipeline.storage import kv, object_listing, ocdbt
from sv_pipeline.storage.context import reset_context
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.precomputed import create_volume, open_volume, read_info, stored_scale
from sv_pipeline.storage.reachable import reachable
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.testing.populating import populate_missing
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.segmentation.volumes import Watershed, assert_base_holds, blobs, make_watershed
from sv_pipeline_tests.storage.test_shards import IDENTITY, write_sharded

SIZE = (70, 45, 37)
REFERENCE = PopulateMethod.REFERENCE


def with_mips(url: str, n_mips: int = 3, **measures: Any) -> Watershed:
    """A watershed of several mips, each of which is the pyramid of the one before."""
    labels = blobs(SIZE)
    measures = {"resolution": (8, 8, 40), "voxel_offset": (8, -16, 3), "chunk_size": (8, 8, 8), **measures}
    volume = create_volume(url, size=SIZE, n_mips=n_mips, factors=(2, 2, 1), **measures)
    mip_labels = labels
    for mip in range(n_mips):
        open_volume(url, mip, writable=True).write(mip_labels.astype(volume.data_type)).result()
        mip_labels = downsample(mip_labels, (2, 2, 1))
    grid = ChunkGrid(read_info(url).bounds, (16, 16, 8))
    return Watershed(url, labels, grid, OcdbtConfig(populate_layer=3, populate_method=REFERENCE, mips=n_mips))


def stored_bytes(watershed: Watershed) -> int:
    """Bytes of the base's own data files, those of values included."""
    base = reachable(ocdbt.OcdbtStore(Base(watershed.url).info().spec()).base)
    return sum(extent.length for extent in base.values if not extent.file.startswith(ocdbt.SOURCE_PREFIX))


def test_of_a_watershed_with_all_its_mips_no_voxel_is_stored(storage_url: str) -> None:
    watershed = with_mips(storage_url)
    plan = watershed.populate()
    assert plan.base.referred == (0, 1, 2)
    assert_base_holds(watershed, plan)
    assert stored_bytes(watershed) == 0
    in_source = {key for key in kv.list_keys(storage_url) if key.split("/")[0] in ("8_8_40", "16_16_40", "32_32_40")}
    base = reachable(ocdbt.OcdbtStore(plan.base.spec()).base)
    assert base.files_of_watershed == in_source
    assert base.files <= set(kv.list_keys(ocdbt.base_folder(storage_url)))


def test_coarser_mips_that_the_watershed_lacks_are_made_and_stored(storage_url: str) -> None:
    watershed = make_watershed(storage_url, populate_method=REFERENCE)
    plan = watershed.plan()
    reports = populate_missing(plan)
    report = finish_populate(plan)
    n_chunks = int(np.prod([-(-s // c) for s, c in zip((70, 45, 37), (16, 16, 8), strict=True)]))
    assert plan.base.referred == (0,)
    assert sum(r.referred for r in reports) == report.referred == n_chunks
    assert report.copied == 0
    assert_base_holds(watershed, plan)
    assert finish_populate(plan).referred == n_chunks


def test_chunks_that_are_absent_stay_absent(storage_url: str) -> None:
    watershed = with_mips(storage_url)
    gone = kv.list_keys(storage_url, "8_8_40/8-16")
    kv.delete_keys(storage_url, gone)
    watershed.labels[:8] = 0
    # Coarser mips show labels of voxels that are gone; they must not be taken for a fault here.
    watershed = Watershed(
        storage_url, watershed.labels, watershed.grid, watershed.config.model_copy(update={"mips": 1})
    )
    plan = watershed.populate()
    assert_base_holds(watershed, plan)
    keys = {key.decode() for key in ocdbt.OcdbtStore(plan.base.spec()).kv.list().result()}
    assert gone
    assert keys.isdisjoint(gone)


def test_the_merge_of_many_keys_is_one_of_neighbours(storage_url: str) -> None:
    watershed = with_mips(storage_url)
    plan = watershed.plan()
    populate_missing(plan)
    before = current_version(ocdbt.base_folder(storage_url)).generation
    report = finish_populate(plan, keys_per_commit=60)
    assert report.merged_parts == plan.n_tasks
    assert report.generation > before + 5
    assert_base_holds(watershed, plan)
    assert finish_populate(plan).generation == report.generation


@pytest.mark.parametrize("used", [0, 10**9])
def test_commits_of_a_merge_have_more_keys_only_while_they_need_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int
) -> None:
    """Small values lie in the tree of a base that copies, so that keys alone do not tell what a commit needs."""
    watershed = with_mips(str(tmp_path))
    watershed = Watershed(
        watershed.url,
        watershed.labels,
        watershed.grid,
        watershed.config.model_copy(update={"populate_method": PopulateMethod.PARTS}),
    )
    plan = watershed.plan()
    populate_missing(plan)
    inline = plan.base.form.max_inline_value_bytes
    assert inline > 0
    monkeypatch.setattr(parts, "KEYS_PER_COMMIT", 200)
    monkeypatch.setattr(parts, "COMMIT_MEMORY", 20 * (parts.BYTES_PER_KEY + parts.COPIES_OF_VALUES * inline))
    memory = iter(range(0, 10**15, used + 1))
    monkeypatch.setattr(parts, "_resident_bytes", lambda: next(memory))
    before = current_version(ocdbt.base_folder(plan.base.watershed_url)).generation
    n_ranges = len(list(key_ranges(plan.base.volume, 20)))
    report = finish_populate(plan)
    grown = 4 + -(-(n_ranges - 15) // 10)  # 1, 2, 4 and 8 ranges, then 10 each
    assert report.generation - before == (n_ranges if used else grown)
    assert report.merged_parts == plan.n_tasks
    assert_base_holds(watershed, plan)


@pytest.mark.parametrize("encoding", ["compressed_segmentation", "raw"])
@pytest.mark.parametrize("hashed", ["identity", "murmurhash3_x86_128"])
def test_shards_of_raw_data_are_referred_to_chunk_by_chunk(storage_url: str, encoding: str, hashed: str) -> None:
    labels = blobs(SIZE)
    labels[:20, :20, :20] = 0
    write_sharded(storage_url, labels, {**IDENTITY, "hash": hashed}, chunk_size=(16, 16, 8), encoding=encoding)
    grid = ChunkGrid(read_info(storage_url).bounds, (16, 16, 8))
    config = OcdbtConfig(populate_layer=3, populate_method=REFERENCE, mips=1)
    watershed = Watershed(storage_url, labels, grid, config)
    plan = watershed.populate()
    assert plan.base.volume.scales[0].encoding == encoding
    assert_base_holds(watershed, plan)
    assert stored_bytes(watershed) == 0
    shard = next(key for key in kv.list_keys(storage_url) if key.endswith(".shard"))
    content = kv.read_bytes(storage_url, shard)
    assert content is not None
    assert not changes_of_source(plan.base)
    kv.write_bytes(storage_url, shard, content)
    assert changes_of_source(plan.base).changed == (shard,)


# -- what qualifies ---------------------------------------------------------------------------------------------------


def gzip_shards(url: str) -> None:
    write_sharded(url, blobs(SIZE), {**IDENTITY, "data_encoding": "gzip"}, chunk_size=(16, 16, 8))


def compress_files(url: str) -> None:
    names = kv.list_keys(url, "8_8_40/")
    for name, data in zip(names, kv.read_many(url, names), strict=True):
        kv.write_bytes(url, name + ".gz", gzip.compress(data or b""))
    kv.delete_keys(url, names)


CASES = {
    "gzip-coded shards": (gzip_shards, {}, "its shards hold gzip-coded data"),
    ".gz files": (compress_files, {}, r"compressed as a whole \(\.gz files\)"),
    "other storage chunks": (None, {"storage_chunk_size": (8, 8, 8)}, r"storage_chunk_size is \(8, 8, 8\)"),
    "chunks that tasks would share": (None, {"populate_layer": 2}, r"no multiples of its storage chunks of \(32"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_qualify_is_refused_with_the_reason_and_copied_by_auto(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, changes, reason = CASES[case]
    url = kv.as_url(tmp_path)
    storage_chunk = (32, 32, 8) if "share" in case else (16, 16, 8)
    watershed = make_watershed(url, storage_chunk=storage_chunk, **changes)
    if spoil is not None:
        if spoil is gzip_shards:
            kv.delete_prefix(url)
        spoil(url)
    with pytest.raises(ConfigError, match=rf"mip 0 \(8_8_40\).*cannot be referred to: .*{reason}.*auto.*parts"):
        watershed.plan(populate_method=REFERENCE)
    assert not kv.list_keys(url, "ocdbt/"), "nothing is written before a refusal"
    caplog.set_level(logging.INFO)
    plan = watershed.populate(populate_method=PopulateMethod.AUTO)
    assert f"mip 0 (8_8_40) of {url} is copied" in caplog.text
    assert plan.base.referred == ()
    assert_base_holds(watershed, plan)


def test_a_content_encoding_is_found_on_the_objects_themselves(gcs_server: GcsControl) -> None:
    watershed = make_watershed(gcs_server.new_bucket())
    bucket, _, path = watershed.url.removeprefix("gs://").partition("/")
    blobs_of = object_listing._client().bucket(bucket)
    names = kv.list_keys(watershed.url, "8_8_40/")

    def encode(some: list[str]) -> None:
        for name, data in zip(some, kv.read_many(watershed.url, some), strict=True):
            blob = blobs_of.blob(path + name)
            blob.content_encoding = "gzip"
            blob.upload_from_string(gzip.compress(data or b""))

    encode(names[:5])
    plan = watershed.plan(populate_method=REFERENCE)
    populate_missing(plan)
    report = finish_populate(plan)
    assert (report.copied, report.referred) == (5, len(names) - 5)
    assert_base_holds(watershed, plan)

    kv.delete_prefix(watershed.url, "ocdbt/")
    reset_context()
    encode(names[5:])
    with pytest.raises(ConfigError, match=r"compressed as a whole \(a content encoding\)"):
        watershed.plan(populate_method=REFERENCE)


def test_a_chunk_that_cannot_be_referred_to_is_copied_and_counted(tmp_path: Path) -> None:
    watershed = with_mips(kv.as_url(tmp_path))
    names = kv.list_keys(watershed.url, "16_16_40/")[3:6]
    for name, data in zip(names, kv.read_many(watershed.url, names), strict=True):
        kv.write_bytes(watershed.url, name + ".gz", gzip.compress(data or b""))
    kv.delete_keys(watershed.url, names)
    plan = watershed.plan()
    reports = populate_missing(plan)
    report = finish_populate(plan)
    assert sum(r.copied for r in reports) == report.copied == 3
    assert_base_holds(watershed, plan)
    assert not changes_of_source(plan.base)


def unsharded(url: str, encoding: str) -> Watershed:
    labels = blobs(SIZE)
    measures: dict[str, Any] = {"resolution": (8, 8, 40), "voxel_offset": (0, 0, 0), "chunk_size": (16, 16, 8)}
    create_volume(url, size=SIZE, encoding=encoding, **measures)
    open_volume(url, writable=True).write(labels).result()
    return one_mip(url, labels)


def sharded(url: str, **sharding: Any) -> tuple[Watershed, str]:
    """A watershed of shards, and the name of the first."""
    labels = blobs(SIZE)
    write_sharded(url, labels, {**IDENTITY, **sharding}, chunk_size=(16, 16, 8))
    return one_mip(url, labels), next(key for key in kv.list_keys(url) if key.endswith(".shard"))


def one_mip(url: str, labels: Any) -> Watershed:
    config = OcdbtConfig(populate_layer=3, populate_method=REFERENCE, mips=1)
    return Watershed(url, labels, ChunkGrid(read_info(url).bounds, (16, 16, 8)), config)


@pytest.mark.parametrize(("encoding", "keep"), [("compressed_segmentation", 0), ("raw", 0), ("raw", -8)])
def test_a_chunk_of_a_length_that_no_chunk_can_have_is_not_referred_to(
    storage_url: str, encoding: str, keep: int
) -> None:
    watershed = unsharded(storage_url, encoding)
    name = kv.list_keys(storage_url, "8_8_40/")[9]
    kv.write_bytes(storage_url, name, (kv.read_bytes(storage_url, name) or b"")[:keep])
    with pytest.raises(DamagedError) as caught:
        watershed.populate()
    assert name in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5])
def test_a_shard_that_ends_too_early_is_named(storage_url: str, keep: float) -> None:
    watershed, shard = sharded(storage_url)
    content = kv.read_bytes(storage_url, shard) or b""
    kv.write_bytes(storage_url, shard, content[: int(keep * len(content))])
    with pytest.raises(InputError, match="ends before its index") as caught:
        watershed.populate()
    assert shard in str(caught.value)


def test_a_chunk_beyond_the_end_of_its_shard_is_not_referred_to(tmp_path: Path) -> None:
    watershed, shard = sharded(kv.as_url(tmp_path), minishard_index_encoding="raw")
    content = bytearray(kv.read_bytes(watershed.url, shard) or b"")
    head = 16 << int(IDENTITY["minishard_bits"])
    rows = np.frombuffer(bytes(content[:head]), "<u8").reshape(-1, 2).tolist()
    start, stop = (n + head for n in next(row for row in rows if row[0] < row[1]))
    index = np.frombuffer(bytes(content[start:stop]), "<u8").reshape(3, -1).copy()
    index[2, -1] += len(content)
    content[start:stop] = index.tobytes()
    kv.write_bytes(watershed.url, shard, bytes(content))
    with pytest.raises(DamagedError) as caught:
        watershed.populate()
    assert shard in str(caught.value)


def test_a_folder_with_the_name_of_a_chunk_is_no_chunk(tmp_path: Path) -> None:
    watershed = unsharded(kv.as_url(tmp_path), "compressed_segmentation")
    name = kv.list_keys(watershed.url, "8_8_40/")[0]
    kv.delete_key(watershed.url, name)
    (tmp_path / name).mkdir()
    plan = watershed.populate()
    watershed.labels[:] = open_volume(watershed.url).read().result()
    assert_base_holds(watershed, plan)


def test_mips_are_judged_one_by_one(tmp_path: Path) -> None:
    watershed = with_mips(kv.as_url(tmp_path))
    names = kv.list_keys(watershed.url, "16_16_40/")
    for name, data in zip(names, kv.read_many(watershed.url, names), strict=True):
        kv.write_bytes(watershed.url, name + ".gz", gzip.compress(data or b""))
    kv.delete_keys(watershed.url, names)
    with pytest.raises(ConfigError, match="mip 1 "):
        watershed.plan()
    plan = watershed.populate(populate_method=PopulateMethod.AUTO)
    assert plan.base.referred == (0, 2)
    assert_base_holds(watershed, plan)


def test_requests_of_a_populate_do_not_grow_with_the_chunks(gcs_server: GcsControl) -> None:
    watershed = with_mips(gcs_server.new_bucket())
    plan = watershed.plan()
    gcs_server.clear()
    populate_missing(plan)
    asked = [name for method, name in gcs_server.requests() if "ocdbt" not in name and not name.endswith("info")]
    assert set(asked) == {""}, "listings only"
    assert len(asked) <= (3 + 1) * plan.n_tasks, "one for each mip, one for other attempts at the task"


# -- the watershed must not change ----------------------------------------------------------------------------------


def test_what_changed_went_or_appeared_is_found_by_name(storage_url: str) -> None:
    watershed = with_mips(storage_url)
    first, second, third = kv.list_keys(storage_url, "8_8_40/")[10:13]
    kept = kv.read_many(storage_url, [first, second, third])
    kv.delete_keys(storage_url, [third])
    watershed = Watershed(
        storage_url, watershed.labels, watershed.grid, watershed.config.model_copy(update={"mips": 1})
    )
    plan = watershed.populate()
    assert not changes_of_source(plan.base)
    assert changes_of_source(plan.base).looked_at == len(kv.list_keys(storage_url, "8_8_40/"))
    kv.write_bytes(storage_url, first, kept[0] or b"")
    kv.delete_key(storage_url, second)
    kv.write_bytes(storage_url, third, kept[2] or b"")
    found = changes_of_source(plan.base)
    assert (found.changed, found.gone, found.appeared) == ((first,), (second,), (third,))
    assert found.text == f"1 changed ({first}); 1 gone ({second}); 1 appeared ({third})"
    assert changes_of_source(plan.base, at_most=1).looked_at < found.looked_at


@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_readers_of_a_chunk_that_is_not_what_it_was_meet_an_error_that_names_it(storage_url: str, damage: str) -> None:
    watershed = with_mips(storage_url)
    plan = watershed.populate()
    name = kv.list_keys(storage_url, "8_8_40/")[7]
    data = kv.read_bytes(storage_url, name) or b""
    if damage == "gone":
        kv.delete_key(storage_url, name)
    else:
        kv.write_bytes(storage_url, name, data[:40] if damage == "shorter" else b"\xff" * (len(data) + 8))
    reset_context()
    store = ocdbt.OcdbtStore(plan.base.spec())
    with pytest.raises(DamagedError, match=r"base refers to this file of the watershed.*verify") as caught:
        retry_transport(lambda: store.array(0).read().result())
    assert name in str(caught.value)
    assert caught.value.place is not None
    assert caught.value.place.endswith(name)


def test_a_watershed_outside_of_folders_and_buckets_does_not_qualify() -> None:
    url = "memory://referring/"
    watershed = make_watershed(url)
    with pytest.raises(ConfigError, match="tells no versions"):
        watershed.plan(populate_method=REFERENCE)
    assert stored_scale(url).url == url


def test_a_folder_that_was_copied_as_a_whole_is_compared_by_sizes(tmp_path: Path, gcs_server: GcsControl) -> None:
    watershed = with_mips(kv.as_url(tmp_path / "here"))
    watershed.populate()
    there = gcs_server.new_bucket()
    names = kv.list_keys(watershed.url)
    contents = zip(names, kv.read_many(watershed.url, names), strict=True)
    kv.write_many(there, {name: data for name, data in contents if data is not None})
    copy = Base(there).info()
    found = changes_of_source(copy)
    assert not found
    assert found.copied_from == watershed.url
    np.testing.assert_array_equal(ocdbt.OcdbtStore(copy.spec()).array(0).read().result(), watershed.labels)
    name = next(name for name in names if name.startswith("8_8_40/"))
    kv.write_bytes(there, name, b"shorter")
    assert changes_of_source(copy).changed == (name,)


def test_names_that_urls_must_quote_are_told_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20#" / "ws%25"
    watershed = make_watershed(kv.as_url(folder), populate_method=REFERENCE)
    info = json.loads((folder / "info").read_text())
    key = info["scales"][0]["key"] = "8 8%20#?"
    (folder / "info").write_text(json.dumps(info))
    (folder / "8_8_40").rename(folder / key)
    plan = watershed.populate()
    assert_base_holds(watershed, plan)
    names = {f"{key}/{name.rpartition('/')[2]}" for name in kv.list_keys(watershed.url, key + "/")}
    assert reachable(ocdbt.OcdbtStore(plan.base.spec()).base).files_of_watershed == names
    gone = folder / sorted(names)[7]
    gone.unlink()
    reset_context()
    store = ocdbt.OcdbtStore(plan.base.spec())
    with pytest.raises(DamagedError, match="base refers to this file of the watershed") as caught:
        retry_transport(lambda: store.array(0).read().result())
    assert caught.value.place == str(gone)


@pytest.mark.parametrize("way", ["moved", "linked"])
def test_a_folder_that_was_moved_or_linked_is_compared_by_versions(tmp_path: Path, way: str) -> None:
    watershed = with_mips(kv.as_url(tmp_path / "here"))
    watershed.populate()
    there = tmp_path / "there"
    if way == "moved":
        (tmp_path / "here").rename(there)
    else:
        there.symlink_to(tmp_path / "here")
    base = Base(there).info()
    assert not changes_of_source(base)
    assert changes_of_source(base).copied_from is None
    name = kv.list_keys(there, "8_8_40/")[5]
    kv.write_bytes(there, name, kv.read_bytes(there, name) or b"")
    assert changes_of_source(base).changed == (name,)


def test_a_chunk_that_is_compressed_later_has_changed_and_one_that_was_copied_may_change(tmp_path: Path) -> None:
    watershed = unsharded(kv.as_url(tmp_path), "compressed_segmentation")
    first, second = kv.list_keys(watershed.url, "8_8_40/")[3:5]
    copied, referred = (kv.read_bytes(watershed.url, name) or b"" for name in (first, second))
    kv.write_bytes(watershed.url, first + ".gz", gzip.compress(copied))
    kv.delete_key(watershed.url, first)
    plan = watershed.populate()
    kv.write_bytes(watershed.url, first, copied)
    kv.delete_key(watershed.url, first + ".gz")
    assert not changes_of_source(plan.base), "the base has a copy of it"
    kv.write_bytes(watershed.url, second + ".gz", gzip.compress(referred))
    found = changes_of_source(plan.base)
    assert (found.changed, found.gone, found.appeared) == ((second,), (), ())
