"""A deployment as in production, on this machine: the files of deploy/celery, real servers, and workers that share
nothing but a bucket and a Bigtable instance.

Each process has a working folder, a home and a folder of temporary files of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from sv_pipeline.testing.servers.bigtable import die_with_parent
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline.testing.servers.postgres import PostgresAddress, find_postgres, running_postgres
from sv_pipeline.testing.servers.redis import RedisServer
from sv_pipeline_tests.defs.dev_server import PROJECT, DevServer, free_port, wait_for

FILES = PROJECT / "deploy" / "celery"
WORKERS = ("one", "two", "three")
DAGSTER = Path(sys.executable).parent


@dataclass
class Process:
    """A process of the deployment that can be killed and started again."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for name in ("tmp", "home", "work"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        own = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                cwd=self.folder / "work",
                env={**self.environment, **own},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_as_a_server,
            )

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def process(self) -> psutil.Process:
        assert self.child is not None
        return psutil.Process(self.child.pid)

    def kill(self) -> None:
        """SIGKILL for this process alone, not for its children."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def stop(self, seconds: float) -> list[psutil.Process]:
        """SIGTERM; the children that are still alive when the process has ended."""
        assert self.child is not None
        children = self.process.children(recursive=True)
        self.child.terminate()
        self.child.wait(seconds)
        _, alive = psutil.wait_procs(children, 3)
        return alive


def _as_a_server() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Deployment:
    """All processes, the servers, and the webserver's GraphQL (`DevServer`)."""

    folder: Path
    redis: RedisServer
    gcs: GcsControl
    environment: dict[str, str]
    home: str
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def ui(self) -> DevServer:
        return DevServer(int(self.environment["PORT_OF_WEBSERVER"]), self.processes["webserver"].child)  # type: ignore[arg-type]

    def start(self, name: str) -> Process:
        self.processes[name].start()
        return self.processes[name]

    def worker_is_ready(self, name: str) -> bool:
        return f"{name}@" in self.processes[name].said and " ready." in self.processes[name].said

    def pool_of(self, worker: str) -> list[psutil.Process]:
        """Pool processes of a worker."""
        return self.processes[worker].process.children()

    def worker_at(self, step: str, seconds: float = 120) -> str:
        """Name of a worker that executes a step whose key contains a text."""
        from celery import Celery

        app = Celery(broker=self.redis.url)

        def find() -> str | None:
            active: dict[str, list[object]] = {}
            with contextlib.suppress(redis.RedisError):  # it has just been restarted
                active = app.control.inspect(timeout=0.5).active() or {}
            found = [host for host, tasks in active.items() for task in tasks if step in str(task)]
            return found[0].split("@")[0] if found else None

        return str(wait_for(find, f"a worker at {step}", seconds))

    def queued(self) -> int:
        """Messages that no worker has taken."""
        with redis.Redis.from_url(self.redis.url) as client:
            return sum(client.llen(key) for key in client.keys("dagster*") if client.type(key) == b"list")

    def close(self) -> None:
        groups = [p.child.pid for p in self.processes.values() if p.child is not None]
        below = [c for pid in groups if psutil.pid_exists(pid) for c in psutil.Process(pid).children(recursive=True)]
        for pid in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in self.processes.values():
            if process.child is not None:
                process.child.wait()


def listens(port: int) -> bool:
    """Whether a server listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def _environment(gcs: GcsControl, emulator: str, postgres: PostgresAddress, broker: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "OPENBLAS_CORETYPE") if name in os.environ}
    bucket = gcs.new_bucket()
    written = (line.split("=", 1) for line in (FILES / "environment").read_text().splitlines() if line[:1].isalpha())
    return {
        **dict(written),
        **kept,
        "PYTHONPATH": str(PROJECT),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "TENSORSTORE_GCS_HTTP_URL": gcs.url,
        "STORAGE_EMULATOR_HOST": gcs.url,
        "BIGTABLE_EMULATOR_HOST": emulator,
        "SV_PIPELINE_EXECUTOR": "celery",
        "SV_PIPELINE_CELERY_BROKER": broker,
        "SV_PIPELINE_CELERY_GRACE_SECONDS": "2",
        "SV_PIPELINE_HOME": f"{bucket}home",
        "SV_PIPELINE_LOG_BUCKET": bucket.split("/")[2],
        "SV_PIPELINE_POSTGRES_HOST": postgres.host,
        "SV_PIPELINE_POSTGRES_PORT": str(postgres.port),
        "SV_PIPELINE_POSTGRES_USER": postgres.user,
        "SV_PIPELINE_POSTGRES_PASSWORD": "unused",
        "SV_PIPELINE_POSTGRES_DATABASE": postgres.database,
        "SV_PIPELINE_CODE_HOST": "127.0.0.1",
        "SV_PIPELINE_CODE_PORT": str(free_port()),
        "PORT_OF_WEBSERVER": str(free_port()),
        "SV_PIPELINE_RECOVERY_MIN_AGE": "5s",
        "OMP_NUM_THREADS": "1",
    }


@contextlib.contextmanager
def deployment(folder: Path, gcs: GcsControl, emulator: str) -> Iterator[Deployment]:
    """Start everything: Postgres, Redis, a code server, a webserver, the daemon and three workers."""
    programs = find_postgres()
    assert programs is not None
    (folder / "redis").mkdir(parents=True)
    with running_postgres(programs) as postgres:
        broker = RedisServer(folder / "redis", FILES / "redis.conf")
        broker.start()
        environment = _environment(gcs, emulator, postgres, broker.url)
        made = Deployment(folder, broker, gcs, environment, environment["SV_PIPELINE_HOME"])
        commands = {
            "code": [str(DAGSTER / "dagster"), "api", "grpc", "-m", "sv_pipeline.definitions", "-h", "127.0.0.1",
                     "-p", environment["SV_PIPELINE_CODE_PORT"]],
            "webserver": [str(DAGSTER / "dagster-webserver"), "-w", str(FILES / "workspace.yaml"), "-h", "127.0.0.1",
                          "-p", environment["PORT_OF_WEBSERVER"]],
            "daemon": [str(DAGSTER / "dagster-daemon"), "run", "-w", str(FILES / "workspace.yaml")],
        }  # fmt: skip
        for name in WORKERS:
            commands[name] = [sys.executable, "-m", "sv_pipeline.defs.celery.worker", "--concurrency", "1",
                              "--hostname", f"{name}@%h"]  # fmt: skip
        for name, command in commands.items():
            own = folder / name
            if name not in WORKERS:  # a worker gets the instance with each step
                (own / "dagster").mkdir(parents=True)
                shutil.copy(FILES / "dagster.yaml", own / "dagster")
            made.processes[name] = Process(name, command, {**environment, "DAGSTER_HOME": str(own / "dagster")}, own)
        try:
            for name in ("code", *WORKERS):
                made.start(name)
            wait_for(lambda: listens(int(environment["SV_PIPELINE_CODE_PORT"])), "the code server", 120)
            made.start("webserver")  # it makes the tables of the instance
            wait_for(made.ui.loaded, f"the webserver: see {made.processes['webserver'].log}", 180)
            made.start("daemon")
            for name in WORKERS:
                wait_for(lambda n=name: made.worker_is_ready(n), f"worker {name}", 60)
            yield made
        finally:
            made.close()
            broker.kill()
