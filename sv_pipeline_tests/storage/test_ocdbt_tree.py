"""Trees that are encoded here, read by TensorStore's own decoder."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import tensorstore as ts
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.storage.byte_strings import ByteStrings, varints
from sv_pipeline.storage.ocdbt_tree import References, Tree, encode_tree, tree_manifest

FILE = "parts/0_0_0/tree"
CONFIG: dict[str, Any] = {
    "manifest_kind": "single",
    "max_inline_value_bytes": 10,
    "max_decoded_node_bytes": 4096,
    "version_tree_arity_log2": 4,
    "compression": {"id": "zstd", "level": 3},
}
NAMES = st.one_of(
    st.binary(min_size=0, max_size=12),
    st.text("0ab/_-", max_size=30).map(str.encode),
    st.integers(0, 1 << 20).map(lambda n: b"8_8_40/%d-%d_0-64" % (n, n + 64)),
)
FILES = st.binary(min_size=1, max_size=20).filter(lambda name: b":" not in name and b"%" not in name)
Entry = tuple[bytes, bytes, int, int]


@st.composite
def entries(draw: st.DrawFn, max_size: int = 60) -> list[Entry]:
    keys = sorted(draw(st.sets(NAMES, min_size=1, max_size=max_size)))
    files = draw(st.lists(FILES, min_size=1, max_size=4))
    numbers = st.one_of(st.integers(0, 300), st.integers(0, (1 << 62) - 1))
    return [(key, draw(st.sampled_from(files)), draw(numbers), draw(numbers)) for key in keys]


def references(rows: list[Entry]) -> References:
    keys, files, offsets, lengths = zip(*rows, strict=True)
    return References(
        ByteStrings.of(keys), ByteStrings.of(files), np.array(offsets, np.int64), np.array(lengths, np.int64)
    )


def database(tree: Tree, context: ts.Context | None = None) -> ts.KvStore:
    """Key space in memory with a database that has just this tree."""
    store = ts.KvStore.open("memory://", context=context or ts.Context()).result()
    store[FILE] = tree.data
    store["manifest.ocdbt"] = tree_manifest(tree, FILE, CONFIG)
    return store


def dumped(store: ts.KvStore, location: str, prefix: bytes = b"") -> list[Entry]:
    """What TensorStore's decoder says of a tree."""
    found: list[Entry] = []
    for entry in ts.ocdbt.dump(store, location).result()["entries"]:
        key = prefix + entry["key"]
        if "location" in entry:
            below = dumped(store, entry["location"], prefix + entry["subtree_common_prefix"])
            assert key == below[0][0]
            assert entry["statistics"]["num_keys"] == len(below)
            assert entry["statistics"]["num_indirect_value_bytes"] == sum(length for *_, length in below)
            found += below
        else:
            head, offset, length = entry["indirect_value"].rsplit(":", 2)
            found.append((key, unquote_to_bytes(head.removeprefix("value::")), int(offset), int(length)))
    return found


@given(rows=entries(), limit=st.sampled_from([1, 200, 600, 1 << 20]), level=st.sampled_from([None, 0, 3]))
def test_tensorstore_reads_back_what_was_encoded(rows: list[Entry], limit: int, level: int | None) -> None:
    total = 0
    for i, (key, file, offset, length) in enumerate(rows):
        length = min(length, (1 << 62) - total)  # the sum is a number of 64 bits as well
        total += length
        rows[i] = (key, file, min(offset, (1 << 63) - 1 - length), length)
    tree = encode_tree(references(rows), FILE, max_node_bytes=limit, compression_level=level)
    store = database(tree)
    version = ts.ocdbt.dump(store).result()["versions"][0]
    assert version["root_height"] == tree.height
    assert version["root"]["statistics"]["num_keys"] == len(rows) == tree.n_keys
    assert dumped(store, version["root"]["location"]) == rows


@given(rows=entries(), limit=st.sampled_from([200, 600, 5000]))
def test_no_node_is_larger_than_the_limit_unless_one_entry_is(rows: list[Entry], limit: int) -> None:
    tree = encode_tree(references(rows), FILE, max_node_bytes=limit)
    at, leaves = 0, 0
    while at < len(tree.data):
        length = int.from_bytes(tree.data[at + 4 : at + 12], "little")
        body = zstandard.ZstdDecompressor().decompress(tree.data[at + 14 : at + length - 4])
        node = ts.ocdbt.dump(database(tree), f"btreenode::{FILE}:{at}:{length}").result()
        assert len(body) <= limit or len(node["entries"]) <= (1 if node["height"] == 0 else 2)
        leaves += node["height"] == 0
        at += length
    assert (leaves > 1) == (tree.height > 0)


@given(rows=entries(), more=st.dictionaries(NAMES, st.binary(min_size=1, max_size=60), max_size=30), data=st.data())
def test_tensorstore_can_go_on_with_a_tree(rows: list[Entry], more: dict[bytes, bytes], data: st.DataObject) -> None:
    rows = [(key, b"values", n % 50, 3) for n, (key, *_) in enumerate(rows)]
    context = ts.Context()
    base = database(encode_tree(references(rows), FILE, max_node_bytes=data.draw(st.sampled_from([1, 300]))), context)
    base["values"] = bytes(range(60))
    expected = {key: bytes(range(offset, offset + 3)) for key, _, offset, _ in rows} | more
    store = ts.KvStore.open({"driver": "ocdbt", "base": "memory://"}, context=context).result()
    with ts.Transaction(atomic=True) as transaction:
        for key, value in more.items():
            store.with_transaction(transaction)[key] = value
    assert sorted(store.list().result()) == sorted(expected)
    assert {key: store[key] for key in expected} == expected
    gone = data.draw(st.sampled_from(sorted(expected)))
    del store[gone]
    assert sorted(store.list().result()) == sorted(expected.keys() - {gone})


def test_a_tree_of_many_keys_has_several_levels_and_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sv_pipeline.storage.ocdbt_tree.AT_ONCE", 999)
    starts = range(0, 6400, 64)
    names = [b"8_8_40/%d-%d_%d-%d_0-64" % (x, x + 64, y, y + 64) for x in starts for y in starts]
    keys = np.sort(np.array(names))
    n = len(keys)
    files = np.strings.add(b"source/", keys)
    all_of_them = References(ByteStrings.of(keys), ByteStrings.of(files), np.zeros(n, np.int64), np.arange(n))
    tree = encode_tree(all_of_them, FILE, max_node_bytes=4096)
    assert tree.height == 2
    store = database(tree)
    root = ts.ocdbt.dump(store).result()["versions"][0]["root"]["location"]
    assert dumped(store, root) == [(k, b"source/" + k, 0, i) for i, k in enumerate(keys.tolist())]
    assert len(tree.data) < 12 * n


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"], [b"a\0", b"a"], []])
def test_keys_that_do_not_ascend_are_refused(keys: list[bytes]) -> None:
    n = len(keys)
    strings = ByteStrings.of(keys)
    with pytest.raises(ValueError, match="ascending"):
        encode_tree(References(strings, strings, np.zeros(n, np.int64), np.ones(n, np.int64)), FILE, max_node_bytes=99)


@given(st.lists(st.integers(0, (1 << 63) - 1)))
def test_numbers_are_encoded_seven_bits_at_a_time(numbers: list[int]) -> None:
    def slowly(number: int) -> bytes:
        return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + slowly(number >> 7)

    assert varints(np.array(numbers, np.uint64)) == b"".join(map(slowly, numbers))


@given(st.lists(st.binary(max_size=6)))
def test_strings_know_their_common_prefixes_and_their_order(strings: list[bytes]) -> None:
    def common(a: bytes, b: bytes) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    found = ByteStrings.of(strings)
    pairs = list(pairwise(strings))
    assert found.shared.tolist() == ([0] if strings else []) + [common(a, b) for a, b in pairs]
    assert found.ascends(found.shared) == all(a < b for a, b in pairs)
    distinct, which = found.distinct()
    assert [distinct.item(i) for i in range(len(distinct))] == sorted(set(strings))
    assert [distinct.item(i) for i in which.tolist()] == strings
