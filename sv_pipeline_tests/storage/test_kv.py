"""Raw key-value access, on disk and on a bucket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sv_pipeline.errors import ConfigError, UnavailableError
from sv_pipeline.patience import PATIENCE_VARIABLE
from sv_pipeline.storage import kv
from sv_pipeline.testing.servers.gcs_client import GcsControl


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("/data/ws", "file:///data/ws/"),
        ("/data/a folder/", "file:///data/a%20folder/"),
        ("file:///data/a%20folder", "file:///data/a%20folder/"),
        ("file:///data/../x", "file:///x/"),
        ("gs://bucket/ws", "gs://bucket/ws/"),
        ("precomputed://gs://bucket/ws/", "gs://bucket/ws/"),
        ("gs://bucket/ws/|neuroglancer-precomputed:", "gs://bucket/ws/"),
        ("memory://ws", "memory://ws/"),
        (Path("/data"), "file:///data/"),
    ],
)
def test_places_have_one_normal_form(given: str, normal: str) -> None:
    assert kv.as_url(given) == normal
    assert kv.as_url(normal) == normal


def test_a_relative_path_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert kv.as_url("ws") == f"file://{tmp_path}/ws/"


@pytest.mark.parametrize("bad", ["", "s3://bucket/x", "gs://", "ftp://host/x"])
def test_places_that_we_cannot_use_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        kv.as_url(bad)


def test_keys_are_written_read_listed_and_deleted(storage_url: str) -> None:
    kv.write_many(storage_url, {"a/1": b"one", "a/2": b"", "b": b"three"})
    assert kv.read_many(storage_url, ["b", "missing", "a/2"]) == [b"three", None, b""]
    assert kv.list_keys(storage_url) == ["a/1", "a/2", "b"]
    assert kv.list_keys(storage_url, "a/") == ["a/1", "a/2"]
    kv.delete_prefix(storage_url, "a/")
    assert kv.list_keys(storage_url) == ["b"]
    kv.delete_keys(storage_url, ["b", "missing"])
    assert kv.list_keys(storage_url) == []
    assert kv.read_bytes(storage_url, "b") is None


def test_more_keys_than_one_page_are_listed(storage_url: str) -> None:
    names = {f"k/{number:04d}": b"" for number in range(1200)}
    kv.write_many(storage_url, names)
    assert kv.list_keys(storage_url, "k/") == sorted(names)


def test_of_many_concurrent_creators_one_wins(storage_url: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(lambda n: kv.write_if_absent(storage_url, "key", str(n).encode()), range(12)))
    assert sum(won) == 1
    assert kv.read_bytes(storage_url, "key") == str(won.index(True)).encode()


def test_a_creator_whose_answer_got_lost_has_won_nevertheless(gcs_server: GcsControl) -> None:
    url = gcs_server.new_bucket()
    gcs_server.add_fault(method="POST", match="key$", phase="after", status=503, times=1)
    assert kv.write_if_absent(url, "key", b"mine")
    assert not kv.write_if_absent(url, "key", b"of another")


def test_requests_that_fail_for_a_while_are_repeated(gcs_server: GcsControl) -> None:
    url = gcs_server.new_bucket()
    gcs_server.add_fault(method="POST", status=503, times=2)
    kv.write_bytes(url, "key", b"value")
    gcs_server.add_fault(method="GET", status=429, times=2)
    assert kv.read_bytes(url, "key") == b"value"


def test_storage_that_never_answers_is_reported_as_unavailable(
    gcs_server: GcsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = {"gcs_request_retries": {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}}
    monkeypatch.setattr("sv_pipeline.storage.context.CONTEXT_OPTIONS", impatient)
    monkeypatch.setattr("sv_pipeline.storage.context._contexts", {})
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    url = gcs_server.new_bucket()
    gcs_server.add_fault(status=503)
    with pytest.raises(UnavailableError, match="retry"):
        kv.read_bytes(url, "key")
