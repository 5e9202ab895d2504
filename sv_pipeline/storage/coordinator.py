"""The OCDBT coordinator: a server process through which several workers commit to one base. Writes no voxels.

``python -m sv_pipeline.storage.coordinator --bind 127.0.0.1:9900`` serves until it is stopped. Its first line of
output is JSON with the ``address`` for the workers. There is no encryption and no authentication, neither here nor
between workers (each of which listens on a port of its own), so it must only be used in a trusted network.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tensorstore as ts

from sv_pipeline.errors import ConfigError, ConflictError, SvPipelineError, UnavailableError
from sv_pipeline.processes import interrupts_held

__all__ = ["ADDRESS_VARIABLE", "announced_address", "known_address", "main", "running_coordinator", "serve"]

ADDRESS_VARIABLE = "SV_PIPELINE_COORDINATOR"
"""Environment variable with the coordinator's address, host:port."""
START_TIMEOUT = 60.0
WILDCARDS = ("", "*", "0.0.0.0", "[::]")  # noqa: S104 - compared with, not bound to

_logger = logging.getLogger(__name__)


def known_address(configured: str | None = None) -> str | None:
    """``host:port`` of a coordinator: as configured, else as the environment says; None if neither names one."""
    return configured or os.environ.get(ADDRESS_VARIABLE) or None


def serve(bind: str) -> tuple[ts.ocdbt.DistributedCoordinatorServer, str]:
    """Start a coordinator in this process; it stops when the returned server is deleted.

    Parameters
    ----------
    bind
        Address host:port to listen on; port 0 chooses a free port.

    Returns
    -------
    The server, and the address that workers use.

    Raises
    ------
    ConfigError
        If ``bind`` does not have the form host:port.
    ConflictError
        If the port is in use.
    """
    host, separator, port_text = bind.rpartition(":")
    if not separator or not port_text.isdigit() or int(port_text) > 65535:
        raise ConfigError(f"cannot bind to {bind!r}.", remedy="Give host:port, e.g. 127.0.0.1:9900.")
    port = int(port_text)
    if port:
        _require_free(host, port)
    server = ts.ocdbt.DistributedCoordinatorServer({"bind_addresses": [bind]})
    reachable = socket.gethostname() if host in WILDCARDS else host
    return server, f"{reachable}:{server.port}"


def _require_free(host: str, port: int) -> None:
    """Refuse a port in use: TensorStore would silently share it (SO_REUSEPORT), and half the workers would miss it."""
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # A port in TIME_WAIT, left by a coordinator that has just been stopped, counts as free; one listened to does
        # not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host in WILDCARDS else host.strip("[]"), port))
            probe.listen(1)
        except OSError as error:
            raise ConflictError(
                f"cannot listen on {host}:{port}: {error.strerror}.",
                remedy="Another coordinator may be running there: use it, or choose another port.",
            ) from error


@contextmanager
def running_coordinator(host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Run a coordinator as a child process during the block, and yield its address.

    The child ends with this process, even if this process is killed.

    Raises
    ------
    UnavailableError
        If it does not start; the message contains its output.
    """
    command = [sys.executable, "-m", "sv_pipeline.storage.coordinator", "--bind", f"{host}:{port}"]
    with interrupts_held():
        child = subprocess.Popen(  # noqa: S603 - our own module
            [*command, "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        yield announced_address(child)
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def announced_address(child: subprocess.Popen[str]) -> str:
    """Return the address that a coordinator has printed as its first line.

    Raises
    ------
    UnavailableError
        If it does not start within a minute; the message contains its output. It is killed then.
    """
    lines: queue.Queue[str] = queue.Queue()
    assert child.stdout is not None
    threading.Thread(target=lambda out: lines.put(out.readline()), args=(child.stdout,), daemon=True).start()
    try:
        line = lines.get(timeout=START_TIMEOUT)
        return str(json.loads(line)["address"])
    except (queue.Empty, ValueError, KeyError) as error:
        child.kill()
        said = child.communicate()[1]
        raise UnavailableError(f"the coordinator did not start: {said.strip() or 'it printed nothing'}") from error


def _stop_without_parent(stop: threading.Event) -> None:
    sys.stdin.read()  # returns when the other end is closed, also because the parent was killed
    stop.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the coordinator; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sv_pipeline.storage.coordinator", description=__doc__)
    parser.add_argument("--bind", default="127.0.0.1:0", help="host:port to listen on; port 0 chooses a free port")
    parser.add_argument("--until-stdin-closes", action="store_true", help="stop when the parent process is gone")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    try:
        server, address = serve(options.bind)
    except SvPipelineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps({"address": address, "process": os.getpid()}) + "\n")
    sys.stdout.flush()
    if options.until_stdin_closes:
        threading.Thread(target=_stop_without_parent, args=(stop,), daemon=True).start()
    stop.wait()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
