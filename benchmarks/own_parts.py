"""Parts that we wrote ourselves beside libraries that do the same, in one run: the cut, the table, retries ...

    python -m benchmarks.own_parts [cut table retry processes guard server ...]

Each line is JSON: seconds of ours and of the others, and ``ratio``, theirs over ours (above 1: ours is faster).
Libraries that are not installed are left out; none of those that docs/design/007-own-parts.md turns down is needed
for anything else. The table needs the Bigtable emulator.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from benchmarks.multicut import networkx_cut, seconds, touching_clouds
from sv_pipeline.algorithms.multicut.flow import minimum_cut
from sv_pipeline.algorithms.multicut.graph import contract
from sv_pipeline.storage.file_guard import commit_guard
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import ColumnKey, RowKeyRange, RowMutation, SetCell
from sv_pipeline.testing.servers.bigtable import find_emulator, running_emulator
from sv_pipeline.testing.servers.gcs_client import running_gcs_server


def show(part: str, ours: float, **others: float | str | bool | None) -> None:
    """One line of results."""
    ratios = {name: round(value / ours, 2) for name, value in others.items() if isinstance(value, float)}
    told = {name: value for name, value in others.items() if not isinstance(value, float)}
    print(json.dumps({"part": part, "ours_s": round(ours, 6), "ratio": ratios, **told}), flush=True)


def library(name: str) -> Any:
    """A module, or None where it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


# -- minimum cut ------------------------------------------------------------------------------------------------------


def cut() -> None:
    """Time of the bare minimum cut, and how much heavier than ours the cut of each solver is."""
    for n_edges, hard in ((3_000, False), (30_000, False), (30_000, True), (100_000, False)):
        graph, sources, sinks = touching_clouds(n_edges, 1, hard)
        contracted = contract(graph, np.array(sources + sinks, np.uint64))
        group = np.arange(contracted.n_vertices)
        terminals = []
        for points in (sources, sinks):
            vertices = contracted.vertices(np.array(points, np.uint64))
            group[vertices] = vertices[0]
            terminals.append(int(vertices[0]))
        ends, n = group[contracted.ends], contracted.n_vertices
        capacities = contracted.capacities
        mine, best = seconds(lambda e=ends, c=capacities, n=n, t=terminals: minimum_cut(n, e, c, *t))
        timed: dict[str, float] = {}
        excess: dict[str, str] = {}
        for name, solve in SOLVERS.items():
            if name == "networkx" and n_edges > 3_000:
                continue
            took, weight = seconds(lambda s=solve, e=ends, c=capacities, n=n, t=terminals: s(n, e, c, t))
            if weight is not None:
                timed[name], excess[name] = took, f"{weight / best.weight - 1:.1e}"
        show(f"cut, {n_edges} edges{', hard' if hard else ''}", mine, **timed, excess=json.dumps(excess))


def _crossing(side: Any, ends: Any, capacities: Any) -> float:
    side = np.asarray(side, bool)
    return float(capacities[side[ends[:, 0]] != side[ends[:, 1]]].sum())


def _scipy(n: int, ends: Any, capacities: Any, terminals: list[int]) -> float:
    unit = (2**31 - 1) / max(capacities.sum(), 1e-300)
    whole = np.maximum(1, np.round(capacities * unit)).astype(np.int32)
    both = np.concatenate([ends, ends[:, ::-1]])
    graph = csr_array((np.concatenate([whole, whole]), (both[:, 0], both[:, 1])), shape=(n, n), dtype=np.int32)
    flow = maximum_flow(graph, *terminals).flow
    from scipy.sparse.csgraph import breadth_first_order

    residual = graph - flow
    residual.eliminate_zeros()
    side = np.zeros(n, bool)
    side[breadth_first_order(residual, terminals[0], return_predecessors=False)] = True
    return _crossing(side, ends, capacities)


def _pymaxflow(n: int, ends: Any, capacities: Any, terminals: list[int]) -> float | None:
    if (maxflow := library("maxflow")) is None:
        return None
    graph = maxflow.Graph[float](n, len(ends))
    graph.add_nodes(n)
    graph.add_edges(ends[:, 0], ends[:, 1], capacities, capacities)
    graph.add_tedge(terminals[0], 1e9, 0.0)
    graph.add_tedge(terminals[1], 0.0, 1e9)
    graph.maxflow()
    return _crossing(np.asarray(graph.get_grid_segments(np.arange(n))) == 0, ends, capacities)


def _igraph(n: int, ends: Any, capacities: Any, terminals: list[int]) -> float | None:
    if (igraph := library("igraph")) is None:
        return None
    found = igraph.Graph(n, ends.tolist()).mincut(*terminals, capacity=capacities.tolist())
    side = np.zeros(n, bool)
    side[found.partition[0]] = True
    return _crossing(side, ends, capacities)


def _ortools(n: int, ends: Any, capacities: Any, terminals: list[int]) -> float | None:
    if (flows := library("ortools.graph.python.max_flow")) is None:
        return None
    solver = flows.SimpleMaxFlow()
    whole = np.round(capacities * (2**50 / capacities.sum())).astype(np.int64)
    for one, other in ((0, 1), (1, 0)):
        solver.add_arcs_with_capacity(ends[:, one].astype(np.int32), ends[:, other].astype(np.int32), whole)
    if solver.solve(*terminals) != solver.OPTIMAL:
        return None
    side = np.zeros(n, bool)
    side[solver.get_source_side_min_cut()] = True
    return _crossing(side, ends, capacities)


SOLVERS: dict[str, Callable[..., float | None]] = {
    "scipy_int32": _scipy,
    "networkx": lambda _, ends, capacities, terminals: networkx_cut(ends, capacities, *terminals),
    "pymaxflow": _pymaxflow,
    "igraph": _igraph,
    "ortools_int64": _ortools,
}


# -- table ------------------------------------------------------------------------------------------------------------


def table() -> None:
    """20,000 rows with two cells each, written and read in one range, by us and by the client below kvdbclient."""
    binary = find_emulator()
    if binary is None:
        return
    keys = [f"{i:020d}".encode() for i in range(20_000)]
    columns = [ColumnKey("0", b"children"), ColumnKey("0", b"parents")]
    with running_emulator(binary):
        from google.cloud import bigtable as google
        from google.cloud.bigtable.row_set import RowSet

        ours = BigtableTable("t", "p", "i")
        ours.create()
        mutations = [RowMutation(key, [SetCell(c, b"x" * 64, 1_000) for c in columns]) for key in keys]
        theirs = google.Client(project="p", admin=True).instance("i").table("t")

        def google_write() -> None:
            rows = []
            for key in keys:
                row = theirs.direct_row(key)
                for column in columns:
                    row.set_cell(column.family, column.qualifier, b"x" * 64)
                rows.append(row)
            theirs.mutate_rows(rows)

        def google_read() -> int:
            rows = RowSet()
            rows.add_row_range_from_keys(start_key=keys[0], end_key=b"1")
            return len([row.cells for row in theirs.read_rows(row_set=rows)])

        mine, other = (
            seconds(action, time.process_time)[0] for action in (lambda: ours.mutate(mutations), google_write)
        )
        show("table, processor time of a write", mine, google=other)
        mine, rows = seconds(lambda: dict(ours.scan([RowKeyRange(keys[0], b"1")])), time.process_time)
        other, count = seconds(google_read, time.process_time)
        assert len(rows) == count == len(keys)
        show("table, processor time of a read", mine, google=other)


# -- retries ----------------------------------------------------------------------------------------------------------


def retry() -> None:
    """What a call that succeeds at once costs when it is wrapped, 20,000 times."""
    times = range(20_000)
    answer = "x".upper

    def ours() -> None:
        for _ in times:
            retry_transport(answer, what="a request")

    others: dict[str, float] = {}
    if (tenacity := library("tenacity")) is not None:
        policy = tenacity.Retrying(
            stop=tenacity.stop_after_delay(30),
            wait=tenacity.wait_random_exponential(0.4, 10),
            retry=tenacity.retry_if_exception(lambda error: "UNAVAILABLE" in str(error)),
        )
        others["tenacity"] = seconds(lambda: [policy(answer) for _ in times])[0]
    if (api_core := library("google.api_core.retry")) is not None:
        wrapped = api_core.Retry(timeout=30)(answer)
        others["google_api_core"] = seconds(lambda: [wrapped() for _ in times])[0]
    show("retry, 20,000 calls", seconds(ours)[0], **others)


# -- processes --------------------------------------------------------------------------------------------------------


ORPHAN = """
import os, sys, time
from {module} import {executor} as Executor
if __name__ == "__main__":
    pool = Executor(2)
    print(*{{future.result() for future in [pool.submit(os.getpid) for _ in range(50)]}}, flush=True)
    time.sleep(60)
"""


def processes() -> None:
    """Whether workers end by themselves, within five seconds, when their parent is killed with SIGKILL."""
    ends = {}
    for module, executor in (
        ("sv_pipeline.processes", "Workers"),
        ("concurrent.futures", "ProcessPoolExecutor"),
        ("loky", "ProcessPoolExecutor"),
    ):
        if library(module) is None:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
            script.write(ORPHAN.format(module=module, executor=executor))
            script.flush()
            command = [sys.executable, script.name]
            # A session of its own, so that all that is left of it can be ended; no output of ours stays open in it.
            parent = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
            )
            assert parent.stdout is not None
            workers = [int(pid) for pid in parent.stdout.readline().split()]
            parent.kill()
            parent.wait()
        time.sleep(5)
        ends[module] = bool(workers) and not any(Path(f"/proc/{pid}").exists() for pid in workers)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    print(json.dumps({"part": "workers end with their parent", **ends}), flush=True)


# -- guard of files ---------------------------------------------------------------------------------------------------


def guard() -> None:
    """A lock taken and given back 2,000 times; and whether a commit after a killed writer can be read."""
    with tempfile.TemporaryDirectory() as folder:
        url = Path(folder).as_uri() + "/"

        def ours() -> None:
            for _ in range(2_000):
                with commit_guard(url):
                    pass

        others: dict[str, float] = {}
        if (filelock := library("filelock")) is not None:
            lock = filelock.FileLock(f"{folder}/other.lock")

            def theirs() -> None:
                for _ in range(2_000):
                    with lock:
                        pass

            others["filelock"] = seconds(theirs)[0]
        mine = seconds(ours)[0]
    show("guard, 2,000 locks", mine, **others, bare_tensorstore_survives_a_killed_writer=_survives())


def _survives() -> bool:
    """Whether TensorStore alone still reads its database after a writer of a longer manifest was killed."""
    with tempfile.TemporaryDirectory() as folder:
        spec = {"driver": "ocdbt", "base": Path(folder).as_uri() + "/"}
        ts.KvStore.open(spec).result().write(b"a", b"1").result()
        # What a writer leaves that is killed between filling the lock file and renaming it.
        Path(folder, "manifest.ocdbt.__lock").write_bytes(b"x" * 4096)
        ts.KvStore.open(spec).result().write(b"b", b"2").result()
        try:
            again = ts.KvStore.open(spec, context=ts.Context()).result()
            return again.read(b"b").result().value == b"2"
        except ValueError:
            return False


# -- GCS server -------------------------------------------------------------------------------------------------------


def server() -> None:
    """1,000 objects written and read by TensorStore; and whether preconditions hold, which commits rely on."""
    told: dict[str, bool] = {}
    with running_gcs_server() as control:
        mine, told["preconditions_hold"] = _objects(control.new_bucket()), _preconditions(control.url)
    if library("gcp_storage_emulator") is not None:
        with _gcp_storage_emulator() as url:
            told["preconditions_hold_in_gcp_storage_emulator"] = _preconditions(url)
    show("GCS server", mine, **told)


def _objects(url: str) -> float:
    store = ts.KvStore.open(url, context=ts.Context()).result()

    def write_and_read() -> None:
        for future in [store.write(f"k{i}", b"x" * 1000) for i in range(1_000)]:
            future.result()
        for future in [store.read(f"k{i}") for i in range(1_000)]:
            future.result()

    return seconds(write_and_read)[0]


def _preconditions(url: str) -> bool:
    """Whether a write that demands that the object is not there is refused where it is."""
    bucket = json.dumps({"name": "bucket"}).encode()
    headers = {"Content-Type": "application/json"}
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b?project=p", bucket, headers))
    target = f"{url}/upload/storage/v1/b/bucket/o?uploadType=media&name=once&ifGenerationMatch=0"
    try:
        for content in (b"1", b"2"):
            urllib.request.urlopen(urllib.request.Request(target, content, {"Content-Type": "text/plain"}))
    except urllib.error.HTTPError as error:
        return error.code == 412
    return False


@contextlib.contextmanager
def _gcp_storage_emulator() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--port", str(port), "--in-memory"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = url
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        yield url
    finally:
        del os.environ["TENSORSTORE_GCS_HTTP_URL"]
        process.kill()
        process.wait()


PARTS = {"cut": cut, "table": table, "retry": retry, "processes": processes, "guard": guard, "server": server}


def main() -> None:
    """Compare the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
