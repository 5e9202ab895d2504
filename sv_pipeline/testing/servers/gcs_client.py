"""Starts the GCS server as a process, and controls it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sv_pipeline.processes import interrupts_held
from sv_pipeline.testing.servers import variable_set

__all__ = ["GcsControl", "running_gcs_server"]

ADDRESS_VARIABLE = "TENSORSTORE_GCS_HTTP_URL"

_buckets = itertools.count()


class GcsControl:
    """Controls a running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def new_bucket(self) -> str:
        """Return the URL of a folder in a new bucket."""
        return f"gs://bucket-{os.getpid()}-{next(_buckets)}/data/"

    def add_fault(self, **rule: Any) -> None:
        """Add a rule; see `gcs.Fault`."""
        self._call("POST", "/_faults", rule)

    def clear(self) -> None:
        """Remove all rules and empty the log."""
        self._call("DELETE", "/_faults")
        self._call("DELETE", "/_requests")

    def requests(self) -> list[tuple[str, str]]:
        """Return the method and object name of each request since the last `clear`."""
        return [(method, name) for method, name in self._call("GET", "/_requests")]

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@contextmanager
def running_gcs_server(folder: Path | None = None) -> Iterator[GcsControl]:
    """Run a server in a process of its own; TensorStore uses it for gs:// in this process and its children."""
    command = [sys.executable, "-m", "sv_pipeline.testing.servers.gcs", "--until-stdin-closes"]
    if folder is not None:
        command += ["--folder", str(folder)]
    with interrupts_held():
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    url = json.loads(child.stdout.readline())["url"]
    try:
        with variable_set(ADDRESS_VARIABLE, url):
            yield GcsControl(url)
    finally:
        child.stdin.close()
        child.kill()
        child.wait()
        child.stdout.close()
