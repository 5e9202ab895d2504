"""Chunks of sharded volumes that TensorStore wrote, found in the shard files by their index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sv_pipeline.errors import InputError
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import plan_volume, stored_scale
from sv_pipeline.storage.shards import find_in_shards
from sv_pipeline.storage.volume_info import info_json

IDENTITY: dict[str, Any] = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 1,
    "minishard_bits": 2,
    "shard_bits": 3,
    "hash": "identity",
    "minishard_index_encoding": "gzip",
    "data_encoding": "raw",
}


def write_sharded(url: str, labels: np.ndarray[Any, Any], sharding: dict[str, Any], **measures: Any) -> None:
    """A sharded volume of one mip."""
    volume = plan_volume(size=labels.shape, **{"resolution": (8, 8, 40), "voxel_offset": (5, -7, 3), **measures})
    scale = info_json(volume)["scales"][0]
    scale["chunk_size"] = scale.pop("chunk_sizes")[0]
    ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": url,
            "multiscale_metadata": {"type": "segmentation", "data_type": "uint64", "num_channels": 1},
            "scale_metadata": {**scale, "sharding": sharding},
        },
        create=True,
    ).result()[..., 0].write(labels).result()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    preshift=st.integers(0, 4),
    minishards=st.integers(0, 3),
    shards=st.integers(0, 5),
    hashed=st.sampled_from(["identity", "murmurhash3_x86_128"]),
    index=st.sampled_from(["raw", "gzip"]),
)
def test_every_chunk_is_found_where_tensorstore_reads_it(
    tmp_path_factory: pytest.TempPathFactory, preshift: int, minishards: int, shards: int, hashed: str, index: str
) -> None:
    url = kv.as_url(tmp_path_factory.mktemp("sharded"))
    labels = np.random.default_rng(0).integers(1, 99, (40, 25, 21)).astype(np.uint64)
    labels[8:16, :, :16] = 0  # chunks that are not stored
    sharding = {
        **IDENTITY,
        "preshift_bits": preshift,
        "minishard_bits": minishards,
        "shard_bits": shards,
        "hash": hashed,
        "minishard_index_encoding": index,
    }
    write_sharded(url, labels, sharding, chunk_size=(8, 8, 8))
    stored = stored_scale(url)
    cells = np.stack(np.unravel_index(np.arange(np.prod(stored.cells)), stored.cells), axis=-1)
    found = find_in_shards(stored, cells)
    store = ts.KvStore.open(
        {"driver": "neuroglancer_uint64_sharded", "base": stored.folder, "metadata": stored.sharding}
    ).result()
    from cloudvolume.datasource.precomputed.common import compressed_morton_code

    codes = compressed_morton_code(cells, stored.cells)
    values = [store.read(int(code).to_bytes(8, "big")).result() for code in codes]
    assert [value.state == "value" for value in values] == (found.lengths >= 0).tolist()
    assert (found.lengths >= 0).sum() == 5 * 4 * 3 - 8
    for i, value in enumerate(values):
        if value.state == "value":
            file = kv.read_bytes(stored.folder, found.files[i].decode())
            assert file is not None
            assert file[found.offsets[i] :][: found.lengths[i]] == bytes(value.value)


def test_an_index_that_is_no_index_names_the_shard(tmp_path: Any) -> None:
    url = kv.as_url(tmp_path)
    write_sharded(url, np.ones((16, 16, 16), np.uint64), {**IDENTITY, "shard_bits": 0}, chunk_size=(8, 8, 8))
    stored = stored_scale(url)
    content = bytearray(kv.read_bytes(stored.folder, "0.shard") or b"")
    head = np.frombuffer(content[:64], "<u8").reshape(-1, 2)
    start = 64 + int(head[head[:, 1] > head[:, 0]][0, 0])
    content[start : start + 4] = b"junk"
    kv.write_bytes(stored.folder, "0.shard", bytes(content))
    with pytest.raises(InputError, match=r"index of .*0\.shard"):
        find_in_shards(stored, np.zeros((1, 3), np.int64))
