"""The GCS test server behaves as the real service does, where our tests depend on it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.testing.servers.gcs import GcsServer


class Api:
    """The JSON API, by hand."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def put(self, name: str, body: bytes, query: str = "") -> int:
        path = f"/upload/storage/v1/b/b/o?uploadType=media&name={name}{query}"
        return self.call("POST", path, body)[0]

    def get(self, name: str, query: str = "", **headers: str) -> tuple[int, bytes, Any]:
        return self.call("GET", f"/storage/v1/b/b/o/{name}?alt=media{query}", **headers)

    def names(self, query: str = "") -> tuple[list[str], list[str], str | None]:
        content = json.loads(self.call("GET", f"/storage/v1/b/b/o?{query}")[1])
        return [item["name"] for item in content["items"]], content["prefixes"], content.get("nextPageToken")


def serve(folder: Path | None) -> tuple[GcsServer, Api]:
    server = GcsServer(0, folder)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, Api(server.url)


@pytest.fixture(params=["memory", "folder"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    server, made = serve(tmp_path if request.param == "folder" else None)
    yield made
    server.shutdown()
    server.server_close()


def test_objects_and_ranges(api: Api) -> None:
    assert api.put("a", b"0123456789") == 200
    assert api.get("a")[:2] == (200, b"0123456789")
    assert api.get("a", Range="bytes=2-4")[:2] == (206, b"234")
    assert api.get("a", Range="bytes=7-")[:2] == (206, b"789")
    assert api.get("a", Range="bytes=-2")[:2] == (206, b"89")
    assert api.get("a", Range="bytes=8-99")[:2] == (206, b"89")
    assert api.get("a", Range="bytes=10-12")[0] == 416
    assert api.get("b")[0] == 404
    assert api.call("DELETE", "/storage/v1/b/b/o/a")[0] == 204
    assert api.call("DELETE", "/storage/v1/b/b/o/a")[0] == 404


def test_preconditions_on_generations(api: Api) -> None:
    assert api.put("a", b"1", "&ifGenerationMatch=7") == 412
    assert api.put("a", b"1", "&ifGenerationMatch=0") == 200
    assert api.put("a", b"2", "&ifGenerationMatch=0") == 412
    generation = api.get("a")[2]["x-goog-generation"]
    assert api.get("a", f"&ifGenerationNotMatch={generation}")[0] == 304
    assert api.get("a", f"&ifGenerationMatch={generation}")[0] == 200
    assert api.put("a", b"3", f"&ifGenerationMatch={generation}") == 200
    assert api.put("a", b"4", f"&ifGenerationMatch={generation}") == 412
    assert api.call("DELETE", f"/storage/v1/b/b/o/a?ifGenerationMatch={generation}")[0] == 412
    assert api.get("a")[1] == b"3"


def test_of_concurrent_conditional_writes_one_wins(api: Api) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: api.put("a", str(n).encode(), "&ifGenerationMatch=0"), range(16)))
    assert sorted(answers) == [200] + [412] * 15


def test_lists_are_paged_and_folded(api: Api) -> None:
    for name in ("a/1", "a/2", "b", "c/1", "c/2", "d"):
        api.put(name, b"")
    assert api.names()[0] == ["a/1", "a/2", "b", "c/1", "c/2", "d"]
    assert api.names("prefix=c/")[0] == ["c/1", "c/2"]
    assert api.names("startOffset=a/2&endOffset=c/2")[0] == ["a/2", "b", "c/1"]
    seen: list[str] = []
    token: str | None = ""
    while token is not None:
        items, folders, token = api.names(f"delimiter=/&maxResults=2&pageToken={token}")
        assert len(items) + len(folders) <= 2
        seen += items + folders
    assert sorted(seen) == ["a/", "b", "c/", "d"]


def test_multipart_uploads(api: Api) -> None:
    metadata = b'--x\r\ncontent-type: application/json\r\n\r\n{"name": "m"}\r\n'
    body = metadata + b"--x\r\ncontent-type: a/b\r\n\r\n\x00data\r\n--x--"
    path = "/upload/storage/v1/b/b/o?uploadType=multipart"
    assert api.call("POST", path, body, **{"Content-Type": "multipart/related; boundary=x"})[0] == 200
    assert api.get("m")[1] == b"\x00data"


def test_faults_before_and_after_the_deed(api: Api) -> None:
    def fault(**rule: Any) -> None:
        api.call("DELETE", "/_faults")
        api.call("POST", "/_faults", json.dumps(rule).encode())

    fault(method="POST", match="^a$", status=503, times=1, skip=1)
    assert [api.put("a", b"1"), api.put("a", b"2"), api.put("b", b"3"), api.put("a", b"4")] == [200, 503, 200, 200]
    fault(method="POST", phase="before", status=500)
    assert (api.put("new", b""), api.get("new")[0]) == (500, 404)
    fault(method="POST", phase="after", status=500)
    assert (api.put("new", b""), api.get("new")[0]) == (500, 200)
    fault(method="POST", match="m", status=429, update_interval=60.0)
    assert [api.put("m", b"1"), api.put("m", b"2"), api.put("x", b"1")] == [200, 429, 200]
    log = json.loads(api.call("GET", "/_requests")[1])
    assert ["POST", "m"] in log


def test_a_folder_outlives_its_server(tmp_path: Path) -> None:
    server, api = serve(tmp_path)
    api.put("kept", b"1")
    api.put("gone", b"2")
    api.call("DELETE", "/storage/v1/b/b/o/gone")
    server.shutdown()
    server.server_close()
    server, api = serve(tmp_path)
    assert api.names()[0] == ["kept"]
    assert api.get("kept")[1] == b"1"
    server.shutdown()
    server.server_close()
