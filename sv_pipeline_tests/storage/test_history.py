"""The history of a database, and a manifest that begins later: what is kept reads as before, and new commits fit."""

from __future__ import annotations

import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.history import manifest_from, manifest_until, node_reader, oldest_generation, read_history
from sv_pipeline_tests.properties import examples


@examples(25)
@given(arity=st.integers(1, 4), steps=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=3))
def test_a_shorter_history_reads_as_before_and_grows_on(arity: int, steps: list[tuple[int, float]]) -> None:
    context = ts.Context()
    config = {"version_tree_arity_log2": arity, "max_inline_value_bytes": 0}
    base = ts.KvStore.open("memory://", context=context).result()
    store = ts.KvStore.open({"driver": "ocdbt", "base": "memory://", "config": config}, context=context).result()

    def at(generation: int) -> dict[bytes, bytes]:
        pinned = ts.KvStore.open({"driver": "ocdbt", "base": "memory://", "version": generation}, context=context)
        opened = pinned.result()
        return {key: opened[key] for key in opened.list().result()}

    total = oldest = 1
    store["first"] = b"made generations 1 and 2"
    total = read_history(base)[-1].number
    for turn, (commits, share) in enumerate(steps):
        for _ in range(commits):
            total += 1
            store[f"key {total % 5}"] = b"value of generation %d" % total
        before = {one.number: at(one.number) for one in read_history(base)}
        assert list(before) == list(range(oldest, total + 1))
        horizon = oldest + round(share * (total - oldest))
        new = manifest_from(read_manifest(base), horizon, node_reader(base), f"d/nodes-{turn}")
        assert new.removed == horizon - oldest
        base[f"d/nodes-{turn}"] = new.nodes
        base["manifest.ocdbt"] = new.manifest
        oldest = horizon
        assert [one.number for one in read_history(base)] == list(range(oldest, total + 1))
        assert oldest_generation(base) == read_history(base)[0]
        assert {number: at(number) for number in range(oldest, total + 1)} == {
            number: content for number, content in before.items() if number >= oldest
        }


@examples(20)
@given(arity=st.integers(1, 4), commits=st.integers(1, 80), share=st.floats(0, 1), first=st.floats(0, 1))
def test_a_history_that_ends_earlier_reads_as_before_and_grows_on(
    arity: int, commits: int, share: float, first: float
) -> None:
    context = ts.Context()
    config = {"version_tree_arity_log2": arity, "max_inline_value_bytes": 0}
    base = ts.KvStore.open("memory://", context=context).result()
    store = ts.KvStore.open({"driver": "ocdbt", "base": "memory://", "config": config}, context=context).result()
    for number in range(commits):
        store[f"key {number % 5}"] = b"value %d" % number
    history = read_history(base)
    oldest = history[round(first * (len(history) - 1))].number
    shorter = manifest_from(read_manifest(base), oldest, node_reader(base), "d/older")
    base["d/older"], base["manifest.ocdbt"] = shorter.nodes, shorter.manifest
    history = read_history(base)
    last = history[round(share * (len(history) - 1))].number
    new = manifest_until(read_manifest(base), last, node_reader(base), "d/nodes")
    assert new.removed == history[-1].number - last
    base["d/nodes"], base["manifest.ocdbt"] = new.nodes, new.manifest
    assert read_history(base) == [one for one in history if one.number <= last]
    # Another context does not remember the former generations.
    files = {key: base[key] for key in base.list().result()}
    other = ts.Context()
    copied = ts.KvStore.open("memory://", context=other).result()
    for key, value in files.items():
        copied[key] = value
    store = ts.KvStore.open({"driver": "ocdbt", "base": "memory://"}, context=other).result()
    for number in range(40):
        store["later"] = b"%d" % number
    kept = read_history(copied)
    assert [one.number for one in kept] == list(range(oldest, last + 41))
    assert kept[: last + 1 - oldest] == [one for one in history if one.number <= last]


def test_a_horizon_after_the_latest_generation_is_refused() -> None:
    store = ts.KvStore.open({"driver": "ocdbt", "base": "memory://"}, context=ts.Context()).result()
    store["a"] = b"1"
    with pytest.raises(ValueError, match="does not exist yet"):
        manifest_from(read_manifest(store.base), 99, node_reader(store.base), "d/x")
