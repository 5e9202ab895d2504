"""Bigtable alone: requests, replies in pieces, broken calls, credentials, the layout of the table, and forks."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from sv_pipeline.config import parse_config
from sv_pipeline.errors import ConfigError, SvPipelineError, UnavailableError
from sv_pipeline.table import open_table
from sv_pipeline.table.bigtable import protocol
from sv_pipeline.table.bigtable import rows as messages
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import Cell, CellFilter, ColumnKey, DeleteCells, RowKeyRange, RowMutation, SetCell

A = ColumnKey("0", b"a")
B = ColumnKey("0", b"b")
COUNTER = ColumnKey("1", b"counter")

Response = protocol.ReadRowsResponse


def chunk(**fields: Any) -> dict[str, Any]:
    for name in ("family_name", "qualifier"):
        if name in fields:
            fields[name] = {"value": fields[name]}
    return fields


def test_a_configuration_opens_the_table_it_names(bigtable_emulator: str) -> None:
    raw = {
        "graph_id": "g",
        "data_source": {"WATERSHED": "gs://bucket/ws"},
        "backend_client": {"TYPE": "bigtable", "CONFIG": {"PROJECT": "p", "INSTANCE": "i"}},
    }
    table = open_table(parse_config(raw), "/nowhere")
    assert isinstance(table, BigtableTable)
    assert table.path == "projects/p/instances/i/tables/g"
    assert not table.exists()


def test_without_credentials_and_emulator_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BIGTABLE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(ConfigError, match="BIGTABLE_EMULATOR_HOST"):
        BigtableTable("t", "p", "i").read_rows([b"r"])


def test_a_server_that_is_gone_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", "127.0.0.1:1")
    table = BigtableTable("t", "p", "i", patience=0.3)
    with pytest.raises(UnavailableError, match="read of projects/p/instances/i/tables/t"):
        table.read_rows([b"r"])
    with pytest.raises(UnavailableError, match=r"row b'r1' \(and 1 more\)"):
        table.mutate([RowMutation(b"r1", [DeleteCells()]), RowMutation(b"r2", [DeleteCells()])])
    with pytest.raises(UnavailableError, match="increment of row b'i'"):
        table.increment(b"i", COUNTER, 1)
    assert table.round_trips > 3  # it did try again


def test_a_refused_row_is_named(bigtable: BigtableTable) -> None:
    unknown = ColumnKey("nofamily", b"q")
    bigtable.patience = 0.3
    bigtable._connection.patience = 0.3
    good, bad = RowMutation(b"good", [SetCell(A, b"x", 1)]), RowMutation(b"bad", [SetCell(unknown, b"x", 1)])
    with pytest.raises(SvPipelineError, match="row b'bad'"):
        bigtable.mutate([good, bad])
    assert bigtable.read_rows([b"good", b"bad"]) == {b"good": {A: [Cell(1, b"x")]}}


def test_a_batch_of_keys_or_ranges_is_one_request(bigtable: BigtableTable) -> None:
    bigtable.mutate(RowMutation(b"%05d" % i, [SetCell(A, b"x", 1)]) for i in range(1_000))
    before = bigtable.round_trips
    assert len(bigtable.read_rows([b"%05d" % i for i in range(10_000)])) == 1_000
    ranges = [RowKeyRange(b"%05d" % i, b"%05d" % (i + 1)) for i in range(0, 1_000, 2)]
    assert len(list(bigtable.scan(ranges))) == 500
    assert bigtable.round_trips - before == 2


def test_the_table_has_the_families_of_the_layout(bigtable: BigtableTable) -> None:
    from google.cloud import bigtable as google
    from kvdbclient.base import DEFAULT_COLUMN_FAMILIES

    client = google.Client(project="project", admin=True)
    found = client.instance("instance").table(bigtable.name).list_column_families()
    assert set(found) == {family.family_id for family in DEFAULT_COLUMN_FAMILIES}
    assert found["1"].gc_rule.max_num_versions == 1
    assert found["3"].gc_rule.max_age.days == 365
    assert found["0"].gc_rule is None


@pytest.mark.parametrize("before", ["", "import google.cloud.bigtable; "])
@pytest.mark.parametrize("after", ["pass", "import kvdbclient, google.cloud.bigtable.data"])
def test_the_messages_are_googles_whenever_its_client_is_imported(before: str, after: str) -> None:
    compare = (
        "from sv_pipeline.table.bigtable import protocol; import sys; "
        f"assert ('google.cloud.bigtable_v2.services' in sys.modules) is {bool(before)}; {after}; "
        "from google.cloud.bigtable_v2 import ReadRowsRequest; "
        "from google.cloud.bigtable_admin_v2.types import CreateTableRequest; "
        "assert protocol.ReadRowsRequest is ReadRowsRequest.pb(); "
        "assert protocol.CreateTableRequest is CreateTableRequest.pb()"
    )
    subprocess.run([sys.executable, "-c", before + compare], check=True)


def test_requests_stay_within_the_limits_of_the_server() -> None:
    keys = [b"%020d" % i for i in range(12_000)]
    assert [len(r.rows.row_keys) for r in messages.read_requests("t", keys, (), None)] == [10_000, 2_000]
    long = [b"%01000d" % i for i in range(1_000)]
    requests = list(messages.read_requests("t", long, (), None))
    assert all(r.ByteSize() < 500_000 for r in requests)
    assert [key for r in requests for key in r.rows.row_keys] == long
    many = [SetCell(ColumnKey("0", b"%d" % i), b"", 1) for i in range(30_000)]
    assert [len(b) for b in messages.entry_batches(RowMutation(b"%d" % i, many) for i in range(2))] == [1, 1]


# -- replies ----------------------------------------------------------------------------------------------------------


def test_rows_are_put_together_from_any_pieces() -> None:
    responses = [
        Response(chunks=[chunk(row_key=b"a", family_name="0", qualifier=b"a", timestamp_micros=2000, value=b"2")]),
        Response(chunks=[chunk(timestamp_micros=1000, value=b"he", value_size=5), chunk(value=b"l", value_size=5)]),
        Response(chunks=[chunk(value=b"lo"), chunk(qualifier=b"b", timestamp_micros=1000, commit_row=True)]),
        Response(
            chunks=[
                chunk(row_key=b"b", family_name="0", qualifier=b"a", value=b"wrong", value_size=9),
                chunk(reset_row=True),
                chunk(row_key=b"b", family_name="4", qualifier=b"a", value=b"right", commit_row=True),
            ]
        ),
        Response(last_scanned_row_key=b"m"),
        Response(chunks=[chunk(row_key=b"z", family_name="0", qualifier=b"a", value=b"never committed")]),
    ]
    assert list(messages.rows_of(responses)) == [
        (b"a", {A: [Cell(2, b"2"), Cell(1, b"hello")], B: [Cell(1, b"")]}),
        (b"b", {ColumnKey("4", b"a"): [Cell(0, b"right")]}),
        (b"m", {}),
    ]


def test_a_broken_read_goes_on_after_the_last_row() -> None:
    ranges = [RowKeyRange(b"a", b"c"), RowKeyRange(b"e", b"g"), RowKeyRange(b"i", b"k")]
    row_filter = messages.read_filter(CellFilter([A], None, True))
    (request,) = messages.read_requests("t", (), ranges, row_filter)
    rest = messages.remaining(messages.remaining(request, b"b"), b"f")
    assert [(r.start_key_open, r.start_key_closed, r.end_key_open) for r in rest.rows.row_ranges] == [
        (b"f", b"", b"g"),
        (b"", b"i", b"k"),
    ]
    assert rest.filter == row_filter
    assert messages.remaining(request, b"j\xff") is not None
    assert messages.remaining(request, b"k") is None
    (request,) = messages.read_requests("t", [b"a", b"b", b"c"], (), None)
    assert list(messages.remaining(request, b"b").rows.row_keys) == [b"c"]
    assert messages.remaining(request, b"c") is None


class Broken(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """The error of a connection that was lost."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the connection was lost"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


Broken.__abstractmethods__ = frozenset()


class LossyCall:
    """A real call whose connection is lost after some messages."""

    def __init__(self, call: Any, messages: int) -> None:
        self.call, self.messages = call, messages

    def __iter__(self) -> Iterator[Any]:
        for number, message in enumerate(self.call):
            if number == self.messages:
                raise Broken
            yield message

    def cancel(self) -> None:
        self.call.cancel()


def test_reads_and_writes_survive_lost_connections(bigtable: BigtableTable, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = bigtable._connection.stream
    lost = iter([0, 3, 0, 700, 1, 5])

    def lossy(method: str, request: Any) -> Any:
        call = stream(method, request)
        messages = next(lost, None)
        return call if messages is None else LossyCall(call, messages)

    rows = {b"%05d" % i: {A: [Cell(1, b"%d" % i)]} for i in range(1_500)}
    monkeypatch.setattr(bigtable._connection, "stream", lossy)
    bigtable.mutate(RowMutation(key, [SetCell(A, row[A][0].value, 1)]) for key, row in rows.items())
    assert bigtable.read_rows(list(rows)) == rows
    lost = iter([10, 20, 30])
    assert list(bigtable.scan([RowKeyRange(b"", b"\xff")])) == list(rows.items())
    assert next(lost, None) is None


# -- processes --------------------------------------------------------------------------------------------------------


def count(table: BigtableTable, times: int) -> list[int]:
    return [table.increment(b"i", COUNTER, 1) for _ in range(times)]


def test_a_forked_child_opens_a_channel_of_its_own(bigtable: BigtableTable) -> None:
    assert count(bigtable, 1) == [1]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        numbers = [n for f in [pool.submit(count, bigtable, 20) for _ in range(2)] for n in f.result(timeout=60)]
    assert sorted(numbers) == list(range(2, 42))
    assert count(bigtable, 1) == [42]


class _Silent(grpc.GenericRpcHandler):
    """Takes every call, and answers none until it is released."""

    def __init__(self, released: threading.Event) -> None:
        self.released = released

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.released.wait(60)
            return iter(())

        return grpc.unary_stream_rpc_method_handler(answer)


def test_a_server_that_is_silent_during_a_read_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Silent(released)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", f"127.0.0.1:{port}")
    table = BigtableTable("silent", "p", "i")
    reader = threading.Thread(target=lambda: list(table.read_rows([b"row"])))
    try:
        reader.start()
        deadline = time.monotonic() + 20
        while "still trying" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.1)
        assert f"read of {table.path}" in caplog.text
    finally:
        released.set()
        reader.join()
        table.close()
        server.stop(None)
