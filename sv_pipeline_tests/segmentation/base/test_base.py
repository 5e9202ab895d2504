"""The base: made once, with one configuration, removed with everything that belongs to it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorstore as ts

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.errors import ConfigError, ConflictError, InputError, NotFoundError, SvPipelineError
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import populate_plan
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline_tests.segmentation.volumes import assert_base_holds, make_watershed


def test_a_base_is_made_once_and_found_again(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    first = Base(storage_url).create(watershed.config, watershed.grid)
    before = kv.list_keys(ocdbt.base_folder(storage_url))
    assert Base(storage_url).create(watershed.config, watershed.grid) == first == Base(storage_url).info()
    assert kv.list_keys(ocdbt.base_folder(storage_url)) == before


@pytest.mark.parametrize("kind", ["single", "numbered"])
@pytest.mark.parametrize("level", [None, 3, 9])
def test_the_database_has_the_configuration_that_was_asked_for(tmp_path: Path, kind: str, level: int | None) -> None:
    config = OcdbtConfig(
        manifest_kind=kind,  # type: ignore[arg-type]
        compression_level=level,
        max_inline_value_bytes=1000,
        max_decoded_node_bytes=100_000,
        version_tree_arity_log2=2,
    )
    Base(tmp_path).create(config, make_watershed(str(tmp_path)).grid)
    found = ts.ocdbt.dump(kv.open_kv(ocdbt.base_folder(tmp_path))).result()["config"]
    assert found["max_inline_value_bytes"] == 1000
    assert found["max_decoded_node_bytes"] == 100_000
    assert found["version_tree_arity_log2"] == 2
    assert found.get("compression") == (None if level is None else {"id": "zstd", "level": level})
    # The dump does not tell the kind; the files do.
    assert bool(kv.list_keys(ocdbt.base_folder(tmp_path), "manifest.0")) == (kind == "numbered")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_decoded_node_bytes", 8192),
        ("version_tree_arity_log2", 2),
        ("manifest_kind", "numbered"),
        ("mips", 1),
        ("storage_chunk_size", (8, 8, 8)),
    ],
)
def test_another_configuration_is_refused_with_the_name_of_the_field(tmp_path: Path, field: str, value: object) -> None:
    watershed = make_watershed(str(tmp_path))
    Base(tmp_path).create(watershed.config, watershed.grid)
    other = watershed.config.model_copy(update={field: value})
    with pytest.raises(ConfigError, match=rf"{field} is .*not {'None' if value is None else ''}.*retire-base"):
        Base(tmp_path).create(other, watershed.grid)


@pytest.mark.parametrize(
    "changes", [{"max_inline_value_bytes": 100}, {"compression_level": None}, {"populate_layer": 2}]
)
def test_values_of_the_info_file_count_more_than_those_of_a_later_configuration(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    watershed = make_watershed(str(tmp_path))
    made = Base(tmp_path).create(watershed.config, watershed.grid)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = watershed.config.model_copy(update=changes)
    assert Base(tmp_path).create(other, watershed.grid) == made
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    counts = Base(tmp_path).effective(other)
    assert counts == Base(tmp_path).effective(watershed.config)
    assert counts.settings == watershed.config.settings
    plans = [populate_plan(Base(tmp_path), watershed.grid, config) for config in (other, watershed.config)]
    assert plans[0].layer == plans[1].layer == 3


def test_values_that_the_info_file_lacks_are_those_of_the_graph_and_unknown_ones_do_not_matter(tmp_path: Path) -> None:
    asked = OcdbtConfig(populate_layer=5, max_inline_value_bytes=7)
    assert Base(tmp_path).effective(asked) == asked
    info = {"compression": {"id": "zstd", "level": 12}, "max_inline_value_bytes": 9, "of_tomorrow": 1}
    kv.write_bytes(f"{tmp_path}/ocdbt/.populated", "meta.json", json.dumps(info).encode())
    counts = Base(tmp_path).effective(asked)
    assert (counts.populate_layer, counts.compression_level, counts.max_inline_value_bytes) == (5, 12, 9)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"populate_layer": "high"}', b'{"compression": {"id": "gzip"}}'])
def test_an_info_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes) -> None:
    kv.write_bytes(f"{tmp_path}/ocdbt/.populated", "meta.json", content)
    with pytest.raises(SvPipelineError, match=r"\.populated/meta\.json"):
        Base(tmp_path).effective(OcdbtConfig())


def test_concurrent_creators_of_differing_mind_leave_one_base(storage_url: str) -> None:
    watershed = make_watershed(storage_url)

    def create(size: int) -> bool:
        config = watershed.config.model_copy(update={"max_decoded_node_bytes": size})
        try:
            Base(storage_url).create(config, watershed.grid)
        except ConfigError:
            return False
        return True

    sizes = [5000 + n for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = [size for size, made in zip(sizes, pool.map(create, sizes), strict=True) if made]
    assert won == [Base(storage_url).info().form.max_decoded_node_bytes]


def test_a_creation_that_was_killed_after_its_record_is_completed(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path))
    Base(tmp_path).create(watershed.config, watershed.grid)
    (tmp_path / "ocdbt/base/manifest.ocdbt").unlink()
    Base(tmp_path).create(watershed.config, watershed.grid)
    assert ocdbt.OcdbtStore(Base(tmp_path).info().spec()).array(0).shape == watershed.labels.shape


def test_a_database_of_somebody_else_is_not_taken_for_a_base(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path))
    ts.KvStore.open({"driver": "ocdbt", "base": ocdbt.base_folder(tmp_path)}).result().write("x", b"y").result()
    with pytest.raises(ConfigError, match="not ours"):
        Base(tmp_path).create(watershed.config, watershed.grid)
    Base(tmp_path).wipe()
    Base(tmp_path).create(watershed.config, watershed.grid)


def test_wiping_removes_every_file_of_the_base_and_its_markers_and_nothing_else(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    source = kv.list_keys(storage_url)
    watershed.populate()
    Base(storage_url).wipe()
    assert kv.list_keys(storage_url) == source
    # A new one may have any configuration, and works.
    plan = watershed.populate(max_inline_value_bytes=100)
    assert_base_holds(watershed, plan)


def test_a_base_that_forks_read_from_is_not_wiped_by_accident(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    watershed.populate()
    Fork(storage_url, "minnie").create()
    assert Base(storage_url).forks() == ["minnie"]
    with pytest.raises(ConflictError, match="minnie"):
        Base(storage_url).wipe()
    Base(storage_url).wipe(force=True)
    assert not kv.list_keys(ocdbt.base_folder(storage_url))


def test_without_a_source_or_a_base_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no volume"):
        Base(tmp_path).create(OcdbtConfig())
    with pytest.raises(NotFoundError, match="no base"):
        Base(tmp_path).info()


def test_an_unreadable_record_is_our_error(tmp_path: Path) -> None:
    folder = tmp_path / "ocdbt/base"
    folder.mkdir(parents=True)
    (folder / "base.json").write_text(json.dumps({"record_version": 99}))
    with pytest.raises(ConfigError, match=r"base\.json"):
        Base(tmp_path).info()


def test_sharding_is_dropped_and_values_are_always_encoded_compactly(tmp_path: Path) -> None:
    for key, extra in (("raw", {"encoding": "raw"}), ("sharded", {"encoding": "compressed_segmentation"})):
        folder = tmp_path / key
        make_watershed(str(folder))
        info = json.loads((folder / "info").read_text())
        info["scales"][0].update(extra)
        if key == "sharded":
            info["scales"][0]["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1"}
        (folder / "info").write_text(json.dumps(info))
        scale = Base(folder).create(OcdbtConfig()).volume.scales[0]
        assert (scale.sharded, scale.encoding, scale.chunk_size) == (False, "compressed_segmentation", (16, 16, 8))
