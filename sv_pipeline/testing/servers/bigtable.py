"""Runs the Bigtable emulator of the Google Cloud SDK as a process on a free port, and stops it at the end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sv_pipeline.errors import UnavailableError
from sv_pipeline.processes import interrupts_held
from sv_pipeline.testing.servers import variable_set

__all__ = ["die_with_parent", "find_emulator", "running_emulator"]

BINARY = "cbtemulator"
SDK = Path("/usr/lib/google-cloud-sdk/platform/bigtable-emulator")
START_SECONDS = 30


def find_emulator() -> str | None:
    """Find the emulator: the value of SV_PIPELINE_BIGTABLE_EMULATOR, else on PATH, else in the Google Cloud SDK."""
    named = os.environ.get("SV_PIPELINE_BIGTABLE_EMULATOR")
    return named or shutil.which(BINARY) or shutil.which(BINARY, path=str(SDK))


@contextlib.contextmanager
def running_emulator(binary: str) -> Iterator[str]:
    """Run an emulator during the block; yield its ``host:port``, which BIGTABLE_EMULATOR_HOST is set to as well."""
    with tempfile.TemporaryFile("w+b") as output:
        with interrupts_held():
            process = subprocess.Popen(
                [binary, "-host", "127.0.0.1", "-port", "0"],  # port 0: the system chooses a free one
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        try:
            address = _wait_for_address(process, output.fileno())
            with variable_set("BIGTABLE_EMULATOR_HOST", address):
                yield address
        finally:
            process.kill()
            process.wait()


def _wait_for_address(process: subprocess.Popen[bytes], output: int) -> str:
    deadline = time.monotonic() + START_SECONDS
    said = ""
    while time.monotonic() < deadline and process.poll() is None:
        said = os.pread(output, 4096, 0).decode(errors="replace")
        if found := re.search(r"running on (\S+:\d+)", said):
            return found[1]
        time.sleep(0.05)
    raise UnavailableError(f"the Bigtable emulator did not start: {said or 'it said nothing'}")


def die_with_parent() -> None:
    """Let this process be killed when its parent dies, so that a killed test run leaves no emulator (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
