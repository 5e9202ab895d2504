"""Runs the Pub/Sub emulator of the Google Cloud SDK as a process on a free port, and stops it at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sv_pipeline.errors import UnavailableError
from sv_pipeline.processes import interrupts_held
from sv_pipeline.testing.servers import variable_set
from sv_pipeline.testing.servers.bigtable import die_with_parent
from sv_pipeline.testing.servers.webhook import free_port

__all__ = ["find_pubsub_emulator", "running_pubsub_emulator"]

JAR = Path("/usr/lib/google-cloud-sdk/platform/pubsub-emulator/lib")
START_SECONDS = 60


def find_pubsub_emulator() -> str | None:
    """Return the path of the emulator's jar; None if it or Java is missing.

    It is the value of SV_PIPELINE_PUBSUB_EMULATOR, or else the jar in the Google Cloud SDK.
    """
    named = os.environ.get("SV_PIPELINE_PUBSUB_EMULATOR")
    found = [named] if named else sorted(map(str, JAR.glob("cloud-pubsub-emulator-*-all.jar")))
    return found[-1] if found and shutil.which("java") else None


@contextlib.contextmanager
def running_pubsub_emulator(jar: str) -> Iterator[str]:
    """Run an emulator during the block; yield its ``host:port``, which PUBSUB_EMULATOR_HOST is set to as well."""
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    with tempfile.TemporaryFile("w+b") as output:
        with interrupts_held():
            process = subprocess.Popen(
                ["java", "-XX:TieredStopAtLevel=1", "-jar", jar, f"--host={host}", f"--port={port}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        try:
            _wait_for(address, process)
            with variable_set("PUBSUB_EMULATOR_HOST", address):
                yield address
        finally:
            process.kill()
            process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.1)
    raise UnavailableError("the Pub/Sub emulator did not start")
