"""Work plans: a list of batches as an object in the home folder, of which workers elsewhere each run one by its index.

The name of a plan is the digest of its content. A plan is never changed, so index ``i`` means the same batch to every
worker and at every attempt::

    <home>/work/<graph id>/<digest>.json    {"graph_id": ..., "batches": [key, ...], "coordinator": host:port or null}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sv_pipeline.config import validate_graph_id
from sv_pipeline.errors import ConfigError, CorruptionError, NotFoundError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch
from sv_pipeline.registry import open_dataset
from sv_pipeline.storage import kv

__all__ = ["WorkPlan", "read_plan", "remove_plan", "run_index", "write_plan"]


@dataclass(frozen=True)
class WorkPlan:
    """Batches of one graph; worker ``i`` runs ``batches[i]``."""

    graph_id: str
    batches: tuple[str, ...]
    """Keys of the batches, see `Batch.key`."""
    coordinator: str | None = None
    """``host:port`` of the OCDBT coordinator; None if the batches need none."""

    @classmethod
    def of(cls, graph_id: str, batches: Sequence[Batch], coordinator: str | None = None) -> WorkPlan:
        """Make the plan of some batches."""
        return cls(graph_id, tuple(batch.key for batch in batches), coordinator)

    @property
    def content(self) -> bytes:
        """The plan as it is stored."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def name(self) -> str:
        """Name of the plan in its graph: 16 hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()[:16]


def _folder(home: str, graph_id: str) -> str:
    return kv.join_url(kv.as_url(home), "work", validate_graph_id(graph_id))


def write_plan(home: str, plan: WorkPlan) -> str:
    """Store a plan in the home folder, and return its name."""
    kv.write_bytes(_folder(home, plan.graph_id), f"{plan.name}.json", plan.content)
    return plan.name


def read_plan(home: str, graph_id: str, name: str) -> WorkPlan:
    """Read a stored plan.

    Raises
    ------
    NotFoundError
        If there is none of this name.
    CorruptionError
        If its content is not what was stored under this name.
    """
    folder = _folder(home, graph_id)
    raw = kv.read_bytes(folder, f"{name}.json")
    if raw is None:
        raise NotFoundError(
            f"there is no work plan {name!r} of graph {graph_id!r} in {folder}: its work has ended, or the name or "
            "the home folder is wrong.",
            remedy="Check the home folder, or plan again with 'sv-pipeline ingest CONFIG.yaml'.",
        )
    plan: WorkPlan | None
    try:
        stored = json.loads(raw)
        plan = WorkPlan(stored["graph_id"], tuple(stored["batches"]), stored["coordinator"])
    except (ValueError, KeyError, TypeError):
        plan = None
    if plan is None or plan.name != name:
        raise CorruptionError(f"the work plan {folder}{name}.json is damaged.", remedy="Plan again; nothing is lost.")
    return plan


def remove_plan(home: str, graph_id: str, name: str) -> None:
    """Remove a plan whose work has ended."""
    kv.delete_key(_folder(home, graph_id), f"{name}.json")


def run_index(home: str, graph_id: str, name: str, index: int) -> stages.BatchReport:
    """Run one batch of a stored plan.

    Raises
    ------
    ConfigError
        If the plan has no batch of this index.
    SvPipelineError
        If the batch fails; the ingest rows of its chunks then hold the reason.
    """
    plan = read_plan(home, graph_id, name)
    if not 0 <= index < len(plan.batches):
        raise ConfigError(
            f"work plan {name!r} has no index {index}.", remedy=f"Its indexes are 0 to {len(plan.batches) - 1}."
        )
    dataset = open_dataset(graph_id, home)
    return stages.run_batch(dataset, Batch.parse(plan.batches[index]), coordinator_address=plan.coordinator)
