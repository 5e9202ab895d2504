"""A Google Cloud Storage server for tests: the JSON API with correct preconditions, and faults and latency on demand.

Start it by ``python -m sv_pipeline.testing.servers.gcs --port 4443 [--folder backing]``; the first line of output is
JSON with its ``url``. TensorStore uses it through ``TENSORSTORE_GCS_HTTP_URL``. Every bucket exists. Beside the API, it
is controlled by these paths:

- ``/_faults``: POST a rule (`Fault`), GET the rules, DELETE them all;
- ``/_requests``: GET the log, a list of [method, object or ""], DELETE it.
"""

from __future__ import annotations

import argparse
import base64
import email.parser
import email.policy
import gzip
import json
import random
import re
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import google_crc32c

from sv_pipeline.testing.servers.object_store import ObjectStore, StoredObject, failed_precondition

__all__ = ["Fault", "GcsServer", "main"]

_OBJECT_PATH = re.compile(r"^(/upload|/download)?/storage/v1/b/([^/]+)/o/?(.*)$")
_BUCKET_PATH = re.compile(r"^/storage/v1/b/([^/]+)$")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


RESET = 444


@dataclass
class Fault:
    """A fault that matching requests meet."""

    method: str | None = None
    """GET, POST or DELETE; None matches all."""
    match: str = ""
    """Regular expression that is searched for in the object's name; listings have the name ""."""
    status: int | None = None
    """HTTP status of the answer. None means only a delay; `RESET` resets the connection instead."""
    phase: str = "before"
    """``before``: the request is not carried out; ``after``: it is carried out, but its answer is lost."""
    times: int | None = None
    """Number of requests that meet the fault; None means all."""
    skip: int = 0
    """Number of matching requests that pass first."""
    probability: float = 1.0
    """Probability with which a matching request meets the fault."""
    delay: float = 0.0
    """Delay before anything is done, in seconds."""
    update_interval: float = 0.0
    """Time within which a second write to the same object is refused with ``status``, in seconds."""


@dataclass
class _State:
    store: ObjectStore
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    updated: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, method: str, name: str) -> Fault | None:
        """Log a request and apply delays; return the fault that it meets, if any."""
        with self.lock:
            self.requests.append((method, name))
            matching = [f for f in self.faults if f.method in (None, method) and re.search(f.match, name)]
            due = [fault for fault in matching if self._due(fault, method, name)]
            if method == "POST":
                self.updated[name] = time.monotonic()
        if delay := sum(fault.delay for fault in due):
            time.sleep(delay)
        return next((fault for fault in due if fault.status is not None), None)

    def _due(self, fault: Fault, method: str, name: str) -> bool:
        if fault.skip > 0:
            fault.skip -= 1
            return False
        if fault.times == 0 or random.random() >= fault.probability:
            return False
        if fault.update_interval and (
            method != "POST" or time.monotonic() - self.updated.get(name, float("-inf")) >= fault.update_interval
        ):
            return False
        if fault.times is not None:
            fault.times -= 1
        return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20
    disable_nagle_algorithm = True
    server: GcsServer

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    @property
    def state(self) -> _State:
        return self.server.state

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        if status == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, content: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), content_type="application/json")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def parts(self) -> tuple[re.Match[str] | None, dict[str, str], str]:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        return _OBJECT_PATH.match(url.path), query, url.path

    def do_GET(self) -> None:
        match, query, path = self.parts()
        if path == "/_faults":
            return self.answer_json([asdict(fault) for fault in self.state.faults])
        if path == "/_requests":
            return self.answer_json(self.state.requests)
        if bucket := _BUCKET_PATH.match(path):
            return self.answer_json({"kind": "storage#bucket", "name": bucket[1], "id": bucket[1]})
        if match is None:
            return self.answer(404)
        name = unquote(match[3])
        fault = self.state.fault_for("GET", name)
        if fault is not None:
            return self.answer(fault.status or 503)
        return self.read_object(match[2], name, query) if name else self.list_objects(match[2], query)

    def read_object(self, bucket: str, name: str, query: dict[str, str]) -> None:
        found = self.state.store.get(bucket, name)
        if found is None:
            return self.answer(404)
        if status := failed_precondition(query, found):
            return self.answer(status)
        if query.get("alt") != "media":
            return self.answer_json(resource(bucket, name, found))
        generation = str(found.generation)
        if found.encoding == "gzip":
            if "gzip" in (self.headers.get("accept-encoding") or ""):
                return self.answer(200, found.read(), x_goog_generation=generation, content_encoding="gzip")
            return self.answer(200, gzip.decompress(found.read()), x_goog_generation=generation)
        wanted = _RANGE.match(self.headers.get("range") or "")
        if wanted is None:
            return self.answer(200, found.read(), x_goog_generation=generation)
        first, last = wanted.groups()
        start = int(first) if first else max(0, found.size - int(last))
        stop = min(found.size, int(last) + 1) if first and last else found.size
        if start >= found.size:
            return self.answer(416, content_range=f"bytes */{found.size}")
        content_range = f"bytes {start}-{stop - 1}/{found.size}"
        return self.answer(206, found.read(start, stop), x_goog_generation=generation, content_range=content_range)

    def list_objects(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(1000, int(query.get("maxResults") or 1000))
        after = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
        items: list[dict[str, Any]] = []
        folders: list[str] = []
        token = None
        for name in self.state.store.names(bucket, prefix, query.get("startOffset", ""), query.get("endOffset", "")):
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entry = name if cut < 0 else name[: cut + len(delimiter)]
            if entry <= after or (folders and entry == folders[-1]):
                continue
            if len(items) + len(folders) == limit:
                last = max([*folders[-1:], *(item["name"] for item in items[-1:])])
                token = base64.urlsafe_b64encode(last.encode()).decode()
                break
            found = self.state.store.get(bucket, name)
            if cut >= 0:
                folders.append(entry)
            elif found is not None:
                items.append(resource(bucket, name, found))
        content: dict[str, Any] = {"kind": "storage#objects", "items": items, "prefixes": folders}
        self.answer_json({**content, "nextPageToken": token} if token else content)

    def do_POST(self) -> None:
        body = self.body()
        match, query, path = self.parts()
        if path == "/_faults":
            self.state.faults.append(Fault(**json.loads(body)))
            return self.answer_json({})
        if match is None or not match[1]:
            return self.answer(404)
        if query.get("uploadType") == "resumable":
            return self.begin_upload(match[2], {"name": json.loads(body or b"{}").get("name", ""), **query})
        if query.get("uploadType") == "multipart":
            metadata, body = parse_multipart(self.headers["content-type"], body)
            query = {"contentEncoding": metadata.get("contentEncoding", ""), "name": metadata.get("name", ""), **query}
        elif query.get("uploadType") != "media":
            return self.answer(501)
        return self.store_object(match[2], query, body)

    def begin_upload(self, bucket: str, query: dict[str, str]) -> None:
        """Answer with the address for the content of an object, as for uploads of unknown length."""
        address = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?{urlencode({**query, 'upload_id': uuid.uuid4()})}"
        self.answer(200, location=address)

    def do_PUT(self) -> None:
        """Take the content of an upload that was begun; all of it at once, or piece by piece."""
        body = self.body()
        match, query, _ = self.parts()
        if match is None or "upload_id" not in query:
            return self.answer(404)
        with self.state.lock:
            content = self.state.uploads.pop(query["upload_id"], b"") + body
            is_last = not (self.headers.get("content-range") or "").endswith("/*")
            if not is_last:
                self.state.uploads[query["upload_id"]] = content
        if not is_last:
            return self.answer(308, range=f"bytes=0-{len(content) - 1}")
        return self.store_object(match[2], query, content)

    def store_object(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        name = query["name"]
        fault = self.state.fault_for("POST", name)
        if fault is not None and fault.phase == "before":
            return self.answer(fault.status or 503)
        stored = self.state.store.put(bucket, name, body, query, query.get("contentEncoding", ""))
        if isinstance(stored, int):
            return self.answer(stored)
        if fault is not None:
            return self.answer(fault.status or 503)
        # The client of Google's library compares the checksum.
        checksum = base64.b64encode(int(google_crc32c.value(body)).to_bytes(4, "big")).decode()
        return self.answer_json({**resource(bucket, name, stored), "crc32c": checksum})

    def do_DELETE(self) -> None:
        match, query, path = self.parts()
        if path == "/_faults":
            self.state.faults.clear()
            return self.answer(204)
        if path == "/_requests":
            self.state.requests.clear()
            return self.answer(204)
        if match is None:
            return self.answer(404)
        name = unquote(match[3])
        fault = self.state.fault_for("DELETE", name)
        if fault is not None and fault.phase == "before":
            return self.answer(fault.status or 503)
        status = self.state.store.delete(match[2], name, query)
        return self.answer(status if fault is None else fault.status or 503)


def parse_multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the metadata and the content of a multipart upload."""
    head = f"content-type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    metadata, content = message.iter_parts()
    data = content.get_payload(decode=True)
    assert isinstance(data, bytes)
    return json.loads(metadata.get_content()), data


def resource(bucket: str, name: str, stored: StoredObject) -> dict[str, Any]:
    """Return an object's metadata in the form of the API."""
    when = datetime.fromtimestamp(stored.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": "1",
        "size": str(stored.size),
        "contentType": "application/octet-stream",
        "timeCreated": when,
        "updated": when,
        **({"contentEncoding": stored.encoding} if stored.encoding else {}),
    }


class GcsServer(ThreadingHTTPServer):
    """The server, which can run in a process of its own or in a thread; ``url`` is its address."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0, folder: Path | None = None) -> None:
        self.state = _State(ObjectStore(folder))
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def server_close(self) -> None:
        """Stop listening, and close the files of the store."""
        super().server_close()
        self.state.store.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until killed, or until the parent process is gone."""
    parser = argparse.ArgumentParser(prog="python -m sv_pipeline.testing.servers.gcs", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--folder", type=Path, help="keep the objects here; default: in memory")
    parser.add_argument("--until-stdin-closes", action="store_true", help="stop when the parent process is gone")
    options = parser.parse_args(arguments)
    server = GcsServer(options.port, options.folder)
    sys.stdout.write(json.dumps({"url": server.url}) + "\n")
    sys.stdout.flush()
    if options.until_stdin_closes:

        def stop() -> None:
            sys.stdin.read()
            server.shutdown()

        threading.Thread(target=stop, daemon=True).start()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
