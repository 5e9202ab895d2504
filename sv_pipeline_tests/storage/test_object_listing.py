"""Sizes and versions of objects: on disk, and from listings of a bucket."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.errors import UnavailableError
from sv_pipeline.storage import kv, object_listing
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.object_listing import first_objects, look_up
from sv_pipeline.storage.precomputed import plan_volume
from sv_pipeline.storage.stored_scale import StoredScale
from sv_pipeline.storage.volume_info import info_json
from sv_pipeline.testing.servers.gcs_client import GcsControl

TRIPLES = st.tuples(*[st.integers(1, 12)] * 3)


@given(cells=TRIPLES, chunk=TRIPLES, offset=st.tuples(*[st.integers(-1200, 1200)] * 3), rest=TRIPLES)
def test_ranks_are_the_order_of_names(
    cells: tuple[int, ...], chunk: tuple[int, ...], offset: tuple[int, ...], rest: tuple[int, ...]
) -> None:
    size = tuple(n * c - r % c for n, c, r in zip(cells, chunk, rest, strict=True))
    volume = plan_volume(resolution=(8, 8, 40), voxel_offset=offset, size=size, chunk_size=chunk)  # type: ignore[arg-type]
    stored = StoredScale("memory://x/", info_json(volume), volume)
    names = ChunkNames(stored.scale)
    every = np.stack(np.unravel_index(np.arange(len(names)), names.shape), axis=-1)
    assert names.names(every).tolist() == [name.encode() for name in stored.names(every)]
    ranks = names.ranks(every)
    assert np.array_equal(names.names(every)[np.argsort(ranks)], np.sort(names.names(every)))
    assert np.array_equal(names.cells(ranks), every)


def test_objects_are_found_with_their_sizes_and_versions(storage_url: str) -> None:
    names = np.sort(np.array([f"{n}-{n + 1}" for n in range(40)], np.bytes_))
    there = np.arange(40) % 3 > 0
    kv.write_many(storage_url, {name.decode(): b"x" * i for i, name in enumerate(names) if there[i]})
    found = look_up(storage_url, names, np.arange(40))
    assert np.array_equal(found.there, there)
    assert np.array_equal(found.sizes, np.where(there, np.arange(40), -1))
    assert (found.versions[there] > 0).all()
    kv.write_bytes(storage_url, names[1].decode(), b"y")
    again = look_up(storage_url, names, np.arange(40))
    assert np.flatnonzero(again.versions != found.versions).tolist() == [1]
    assert {row[0] for row in first_objects(storage_url)} == set(names[there].tolist())
    assert len(first_objects(storage_url, limit=7)) == 7


def test_what_lies_between_is_listed_along_unless_it_is_more_than_a_page(
    gcs_server: GcsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_listing, "PAGE", 10)
    url = gcs_server.new_bucket()
    names = np.array([f"{n:04d}" for n in range(100)], np.bytes_)
    kv.write_many(url, {name.decode(): b"xy" for name in names})
    wanted = np.array([3, 4, 12, 60, 62, 99])
    gcs_server.clear()
    found = look_up(url, names[wanted], wanted)
    assert found.sizes.tolist() == [2] * 6
    assert gcs_server.requests() == [("GET", "")] * 3


def test_objects_that_are_compressed_as_a_whole_are_told_apart(gcs_server: GcsControl, tmp_path: Path) -> None:
    url = gcs_server.new_bucket()
    bucket, _, path = url.removeprefix("gs://").partition("/")
    blobs = object_listing._client().bucket(bucket)
    for name, encoding in (("a", None), ("b", "gzip"), ("c", "identity")):
        blob = blobs.blob(path + name)
        blob.content_encoding = encoding
        blob.upload_from_string(gzip.compress(b"abc") if encoding == "gzip" else b"abc")
    names = np.array([b"a", b"b", b"c", b"d"])
    assert look_up(url, names, np.arange(4)).there.tolist() == [True, False, True, False]
    assert kv.read_many(url, ["a", "b", "c", "d"]) == [b"abc", b"abc", b"abc", None]
    kv.write_many(tmp_path, {"a": b"abc", "b.gz": gzip.compress(b"abc"), "c": b"abc", "c.gz": b""})
    on_disk = look_up(kv.as_url(tmp_path), names, np.arange(4), [".gz"])
    assert on_disk.there.tolist() == [True, False, False, False]
    assert on_disk.compressed.tolist() == [False, True, True, False]


def test_a_bucket_that_does_not_answer_is_an_error_of_ours(
    gcs_server: GcsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SV_PIPELINE_PATIENCE", "1")
    gcs_server.add_fault(method="GET", status=503)
    with pytest.raises(UnavailableError, match=r"listing gs://.*did not answer"):
        look_up(gcs_server.new_bucket(), np.array([b"a"]), np.arange(1))


def test_a_folder_that_is_not_there_has_no_objects(storage_url: str) -> None:
    place = kv.join_url(storage_url, "nowhere")
    assert first_objects(place) == []
    assert look_up(place, np.array([b"a"]), np.arange(1)).sizes.tolist() == [-1]
