"""docs/ocdbt_reference.md says what is so: of TensorStore as it is installed, and of what we make."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tensorstore as ts

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.context import CONTEXT_OPTIONS
from sv_pipeline_tests.segmentation.volumes import make_watershed

PAGE = Path(__file__).resolve().parents[2] / "docs/ocdbt_reference.md"
CELL = re.compile(r"`(.*)`")

SAMPLES: dict[str, Any] = {
    "uuid": "0123456789abcdef0123456789abcdef",
    "base": "memory://sample/",
    "path": "x/",
    "config": {},
    "value_data_prefix": "g_d/",
    "btree_node_data_prefix": "g_d/",
    "version_tree_node_data_prefix": "g_d/",
    "version": 3,
    "coordinator": {"address": "localhost:1"},
    "manifest": "memory://sample/",
    "assume_config": True,
    "target_data_file_size": 1 << 20,
    "cache_pool": {"total_bytes_limit": 1},
    "data_copy_concurrency": {"limit": 1},
    "experimental_read_coalescing_threshold_bytes": 1,
    "experimental_read_coalescing_merged_bytes": 1,
    "experimental_read_coalescing_interval": "1ms",
    "address": "localhost:1",
    "lease_duration": "10s",
    "gcs_request_concurrency.limit": 1,
    "file_io_concurrency.limit": 1,
    "file_io_locking.mode": "os",
    "data_copy_concurrency.limit": 1,
    "ocdbt_coordinator.address": "localhost:1",
}
"""A value for each option without a fixed one, to see that TensorStore takes it."""


@dataclass(frozen=True)
class Row:
    where: str
    option: str
    default: str
    ours: str
    why: str

    @property
    def fixed(self) -> Any:
        """Our value, where the page names one."""
        return value(self.ours)


UNSET = object()


def value(cell: str) -> Any:
    match = CELL.search(cell)
    return json.loads(match[1]) if match else UNSET


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 5 and cells[0] not in ("Where", "---"):
            found.append(Row(cells[0], cells[1].strip("`"), *cells[2:]))
    return found


ROWS = rows()
by_where = {
    where: [row for row in ROWS if row.where == where] for where in ("config", "spec", "coordinator", "context")
}


def ident(row: Row) -> str:
    return f"{row.where}-{row.option}"


def spec_with(row: Row, setting: Any) -> None:
    """Parse a spec with the option set; TensorStore refuses members that it does not know."""
    if row.where == "context":
        resource, member = row.option.split(".")
        ts.Context.Spec({resource: {member: setting}})
        return
    members = {"spec": {row.option: setting}, "config": {"config": {row.option: setting}}}.get(
        row.where, {"coordinator": {"address": "localhost:1", row.option: setting}}
    )
    ts.KvStore.Spec({"driver": "ocdbt", "base": "memory://sample/", **members})


def test_the_page_has_its_tables_and_every_row_a_reason() -> None:
    assert {where: len(found) > 2 for where, found in by_where.items()} == dict.fromkeys(by_where, True)
    assert sum(map(len, by_where.values())) == len(ROWS)
    assert all(len(row.why) > 8 for row in ROWS)
    assert len({ident(row) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=ident)
def test_every_option_exists(row: Row) -> None:
    if row.option == "security":
        with pytest.raises(ValueError, match=r"security.*method"):
            spec_with(row, {"method": "insecure"})
        return
    spec_with(row, SAMPLES.get(row.option, row.fixed))
    with pytest.raises(ValueError, match=r"extra members|Invalid context"):
        spec_with(Row(row.where, row.option + "_bogus", "", "", ""), 1)


@pytest.mark.parametrize("row", by_where["config"], ids=ident)
def test_defaults_of_the_configuration_are_those_of_a_new_database(row: Row) -> None:
    base = f"memory://defaults-{row.option}/"
    context = ts.Context()
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}, context=context).result()
    store["key"] = b"value"
    default = value(row.default)
    if default is UNSET:
        return
    found = ts.ocdbt.dump(store.base).result()["config"]
    assert found.get(row.option, "single") == default
    # The same by TensorStore's own comparison.
    same = {"driver": "ocdbt", "base": base, "config": {row.option: default}}
    assert ts.KvStore.open(same, context=context).result()["key"] == b"value"


@pytest.mark.parametrize("row", by_where["spec"], ids=ident)
def test_defaults_of_the_spec_are_those_that_tensorstore_fills_in(row: Row) -> None:
    filled_in = ts.KvStore.Spec({"driver": "ocdbt", "base": "memory://x/"}).to_json(include_defaults=True)
    if row.option != "base":
        assert filled_in.get(row.option, UNSET) == value(row.default)


@pytest.mark.parametrize("row", by_where["context"], ids=ident)
def test_defaults_and_values_of_the_context_are_as_named(row: Row) -> None:
    resource, member = row.option.split(".")
    default = ts.Context.Spec({resource: {}}).to_json(include_defaults=True)[resource]
    assert default.get(member, UNSET) == value(row.default)
    assert CONTEXT_OPTIONS.get(resource, {}).get(member, UNSET) == row.fixed


def test_the_base_that_we_create_holds_the_values_that_are_named(tmp_path: Path) -> None:
    Base(tmp_path).create(OcdbtConfig(), make_watershed(str(tmp_path)).grid)
    found = ts.ocdbt.dump(kv.open_kv(ocdbt.base_folder(tmp_path))).result()["config"]
    named = {row.option: row.fixed for row in by_where["config"] if row.ours != "never"}
    assert named.pop("manifest_kind") == OcdbtConfig().manifest_kind == "single"
    assert "manifest_kind" not in found or found["manifest_kind"] == "single"
    found.pop("uuid")
    assert found == named


def test_our_specs_have_no_member_that_the_page_does_not_name_and_none_that_it_refuses() -> None:
    form = ocdbt.OcdbtFormat.of(OcdbtConfig())
    ours = [
        ocdbt.base_spec("/ws", form=form, coordinator="host:1"),
        ocdbt.part_spec("/ws", "0_0_0", "a", form=form, refers=True),
        ocdbt.fork_spec("/ws", "g", version=3),
        ocdbt.array_spec(ocdbt.fork_spec("/ws", "g"), 0)["kvstore"],
    ]
    for where, used in (
        ("spec", {name for spec in ours for name in spec} - {"driver"}),
        ("config", {name for spec in ours for name in spec.get("config", {})}),
        ("coordinator", {name for spec in ours for name in spec.get("coordinator", {})}),
        ("context", {f"{resource}.{name}" for resource, members in CONTEXT_OPTIONS.items() for name in members}),
    ):
        assert used == {row.option for row in by_where[where] if row.ours != "never"}
    for fork in ours[2:]:
        assert not {"config", "coordinator"} & set(fork)
