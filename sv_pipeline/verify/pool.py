"""Runs the parts of a verification in worker processes, and keeps what they found until the verification has ended."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import lru_cache

from sv_pipeline import __version__
from sv_pipeline.errors import DamagedError, NotFoundError
from sv_pipeline.operations.ownership import OPEN_ROWS, OWNER
from sv_pipeline.processes import Workers
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.storage import kv
from sv_pipeline.table import counters, keys
from sv_pipeline.verify.boundary import Strays
from sv_pipeline.verify.dataset_under_test import Subject
from sv_pipeline.verify.part import Division
from sv_pipeline.verify.records import FolderRecords
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import PartsDone, make_plan, run_here
from sv_pipeline.verify.verification import Plan, Run, Verification

__all__ = ["begin", "resume", "run_in_processes", "state_of", "verify_in_parts"]

logger = logging.getLogger(__name__)

FOLDER, PLAN = "verifications", "plan"
MOST_SECONDS = 7 * 24 * 3600
"""Age at which the results of a verification that has not ended are not used any more."""


def state_of(dataset: Dataset) -> str:
    """Return a text that changes with each operation, each version of the voxels, and each making of the graph."""
    table, fork = dataset.graph.table, dataset.fork
    rows = list(table.scan([keys.ingest_range(dataset.graph.n_layers)], newest_only=True))
    rows += sorted(table.read_rows([keys.META], newest_only=True).items())
    made = hashlib.blake2b(repr(rows).encode(), digest_size=8).hexdigest()
    opened = [key.decode() for key, _ in table.scan([OPEN_ROWS], [OWNER], newest_only=True)]
    generation = fork.generation() if fork.exists() else None
    return json.dumps([__version__, made, counters.last_operation_id(table), opened, generation])


def folder_of(dataset: Dataset, plan: Plan) -> str:
    """URL of the folder with the results of a verification."""
    return kv.join_url(dataset.home, FOLDER, dataset.graph_id, plan.key)


def begin(
    dataset: Dataset,
    checks: tuple[str, ...],
    *,
    sample: int | None = None,
    seed: int = 0,
    again: bool = False,
    division: Division | None = None,
) -> Verification:
    """Begin a verification whose results are kept in the home folder, or resume one that did not end.

    It is resumed only if neither the graph nor what is to be verified has changed, and if it is not older than a week.
    Parts that found something are verified again, since what they found may have been repaired.

    Parameters
    ----------
    dataset
        The graph.
    checks
        Names of checks.
    sample, seed
        See `sv_pipeline.verify.run.verify`.
    again
        Whether results of an earlier verification that did not end are removed.
    division
        The division into parts; None = as the memory budget asks for.
    """
    subject = Subject(dataset.graph.table, dataset.fork, sample, seed)
    plan = make_plan(subject, checks, division, state=state_of(dataset))
    url = folder_of(dataset, plan)
    records = FolderRecords(url)
    verification = Verification(subject, plan, records)
    stored = kv.read_bytes(url, PLAN)
    if stored is not None and (again or not 0 <= time.time() - _begun(stored) <= MOST_SECONDS):
        records.clear()
        stored = None
    if stored is None:
        kv.write_bytes(url, PLAN, json.dumps({"begun": time.time(), "plan": plan.to_json().decode()}).encode())
    else:
        verification.forget_faults()
        if done := records.done():
            logger.info(
                "graph %s: %d parts were verified before, and are not verified again", dataset.graph_id, len(done)
            )
    return verification


def _begun(stored: bytes) -> float:
    """When a verification began, in seconds since 1970; 0 if what was stored cannot be read."""
    try:
        return float(json.loads(stored)["begun"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def resume(dataset: Dataset, key: str) -> Verification:
    """Open a verification that has begun, by the key of its plan.

    Raises
    ------
    NotFoundError
        If it has ended, or never begun.
    """
    url = kv.join_url(dataset.home, FOLDER, dataset.graph_id, key)
    stored = kv.read_bytes(url, PLAN)
    if stored is None:
        raise NotFoundError(f"there is no verification {key} of graph {dataset.graph_id} any more.")
    try:
        plan = Plan.from_json(json.loads(stored)["plan"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{url}{PLAN} cannot be read: {error!r}.", remedy=f"Remove {url}.") from error
    return Verification(Subject(dataset.graph.table, dataset.fork, plan.sample, plan.seed), plan, FolderRecords(url))


def verify_in_parts(
    dataset: Dataset,
    checks: tuple[str, ...],
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    again: bool = False,
    division: Division | None = None,
) -> VerifyReport:
    """Verify a graph part by part, in worker processes if there are more than one; see `begin` for the parameters."""
    started = time.monotonic()
    verification = begin(dataset, checks, sample=sample, seed=seed, again=again, division=division)
    counted = PartsDone(progress, verification)

    def state() -> str:
        return state_of(dataset)

    if workers == 1:
        verification.run(run_here(counted), state)
    else:
        with Workers(workers) as pool:
            verification.run(run_in_processes(pool, workers, dataset, counted), state)
    report = verification.report(time.monotonic() - started)
    verification.records.clear()
    return report


def run_in_processes(pool: Workers, workers: int, dataset: Dataset, progress: PartsDone) -> Run:
    """Return a function that runs parts in a pool of processes, ``workers`` of them at a time."""

    def run(verification: Verification, names: Sequence[str], strays: Strays) -> None:
        waiting = deque(names)
        running: dict[Future[None], str] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.popleft()
                key = verification.plan.key
                running[pool.submit(_work, dataset.graph_id, dataset.home, key, name, strays)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                future.result()
                progress.part_done(name)

    return run


@lru_cache(maxsize=2)
def _verification(graph_id: str, home: str, key: str) -> Verification:
    return resume(open_dataset(graph_id, home), key)


def _work(graph_id: str, home: str, key: str, name: str, strays: Strays) -> None:
    """Verify one part in a worker process, which gets only names and opens the graph itself."""
    _verification(graph_id, home, key).run_part(name, strays)
