"""Manifests are decoded as TensorStore decodes them, and reading them leaves nothing behind in the process."""

from __future__ import annotations

import gc

import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.storage.generations import current_version, read_manifest
from sv_pipeline.storage.manifest import SINGLE_MANIFEST, decode_manifest, is_numbered


def new_store(arity: int = 1, level: int | None = 0, prefix: str = "d/", **config: object) -> ts.KvStore:
    compression = None if level is None else {"id": "zstd", "level": level}
    spec = {
        "driver": "ocdbt",
        "base": "memory://store/",
        "config": {"version_tree_arity_log2": arity, "compression": compression, **config},
        "btree_node_data_prefix": prefix,
        "version_tree_node_data_prefix": prefix[::-1],
    }
    return ts.KvStore.open(spec, context=ts.Context()).result()


def manifest_of(store: ts.KvStore) -> bytes:
    return bytes(store.base.read(SINGLE_MANIFEST).result().value)


@given(
    st.lists(st.integers(0, 5) | st.none(), max_size=20),
    st.integers(1, 4),
    st.none() | st.integers(-5, 5),
    st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
)
def test_it_equals_tensorstores_dump(commits: list[int | None], arity: int, level: int | None, prefix: str) -> None:
    store = new_store(arity, level, f"a{prefix}/")
    store.write("k", b"first").result()
    for number in commits:
        if number is None:
            store.delete_range(ts.KvStore.KeyRange()).result()
        else:
            store.write(f"k{number}", bytes(900 * number)).result()
    assert decode_manifest(manifest_of(store)) == ts.ocdbt.dump(store.base).result()
    assert not is_numbered(manifest_of(store))


def test_numbered_manifests_are_left_to_tensorstore() -> None:
    store = new_store(manifest_kind="numbered")
    store.write("k", b"value").result()
    assert decode_manifest(manifest_of(store)) is None
    assert is_numbered(manifest_of(store))
    assert current_version(store.base).generation == 2


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255) | st.none())
def test_damage_is_noticed(where: float, flipped: int | None) -> None:
    store = new_store()
    store.write("k", b"value").result()
    manifest = bytearray(manifest_of(store))
    at = int(where * len(manifest))
    if flipped is None:
        del manifest[at:]
    else:
        manifest[at] ^= flipped
    with pytest.raises(ValueError, match=r"it|unknown|data"):
        decode_manifest(bytes(manifest))


def test_reading_it_leaves_no_objects_behind() -> None:
    store = new_store()
    for i in range(20):
        store.write("k", bytes(i)).result()

    def objects_after(reads: int) -> int:
        for _ in range(reads):
            read_manifest(store.base)
        gc.collect()
        return len(gc.get_objects())

    few = objects_after(5)
    assert objects_after(50) - few < 25, "TensorStore's dump leaves more than one for each read"
