"""The graphs of an installation, by name: functions to register, build, inspect, verify and recover them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sv_pipeline.storage.wall import behind_the_wall

if TYPE_CHECKING:
    from sv_pipeline.config import DatasetConfig
    from sv_pipeline.operations.unfinished import Unfinished
    from sv_pipeline.recovery import RecoveryReport
    from sv_pipeline.registry import Dataset
    from sv_pipeline.reports.status import GraphStatus
    from sv_pipeline.verify.run import VerifyReport

__all__ = ["ingest", "list_stuck", "recover", "register", "status", "verify"]

# Imports that the functions need are deferred to the call, because every worker and every `--help` imports this module.

Home: TypeAlias = "str | os.PathLike[str] | None"


@behind_the_wall
def register(config: str | Path | Mapping[str, Any] | DatasetConfig, home: Home = None) -> Dataset:
    """Register a graph in this installation. Nothing is built yet.

    Parameters
    ----------
    config
        Path of a dataset YAML file, or its content as a mapping or as a parsed configuration.
    home
        Home folder. Default: ``$SV_PIPELINE_HOME``, or an existing ``.sv_pipeline`` of the working directory, or
        ``~/.sv_pipeline``.

    Returns
    -------
    Dataset
        The registered graph. Registering the same configuration again returns the same graph.

    Raises
    ------
    ConfigError
        If a field is missing, unknown or invalid; the message names each such field.
    ConflictError
        If a graph of this name is registered with another configuration.
    """
    from sv_pipeline.arguments import shown
    from sv_pipeline.config import DatasetConfig, load_config, parse_config
    from sv_pipeline.errors import ConfigError
    from sv_pipeline.ingest.stages import register as register_dataset
    from sv_pipeline.registry import home_or_default

    if isinstance(config, DatasetConfig):
        parsed = config
    elif isinstance(config, Mapping):
        parsed = parse_config(dict(config))
    elif isinstance(config, str | Path):
        parsed = load_config(config)
    else:
        raise ConfigError(
            f"cannot use {shown(config)} as configuration.",
            remedy="Give the path of a dataset YAML, or its content as a mapping.",
        )
    return register_dataset(parsed, home_or_default(home))


@behind_the_wall
def ingest(
    graph_id: str,
    home: Home = None,
    *,
    layers: Sequence[int] | None = None,
    workers: int | None = None,
) -> GraphStatus:
    """Build what is missing of a registered graph. It may be called again after any failure.

    Parameters
    ----------
    graph_id
        Name of the graph.
    layers
        Build only these layers of the graph, and no fork. Default: everything that is missing.
    workers
        Number of processes; 1 uses only this process. Default: the number in the configuration.

    Returns
    -------
    GraphStatus
        The status after the build.

    Raises
    ------
    NotFoundError
        If no such graph is registered.
    SvPipelineError
        The first failure; what was completed stays complete.
    """
    from sv_pipeline.arguments import parse_count, parse_ids
    from sv_pipeline.ingest import run
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.reports.status import graph_status

    dataset = open_dataset(graph_id, home)
    chosen = None if layers is None else parse_ids(layers, "layers").tolist()
    run.ingest(dataset, layers=chosen, workers=None if workers is None else parse_count(workers, "workers", least=1))
    return graph_status(dataset)


@behind_the_wall
def status(graph_id: str, home: Home = None) -> GraphStatus:
    """Return how far the ingest of a graph is: the chunks of each stage and layer, completed and failed.

    Raises
    ------
    NotFoundError
        If no such graph is registered.
    """
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.reports.status import graph_status

    return graph_status(open_dataset(graph_id, home))


@behind_the_wall
def verify(
    graph_id: str,
    home: Home = None,
    *,
    checks: Sequence[str] | None = None,
    sample: int | None = None,
    workers: int = 1,
) -> VerifyReport:
    """Check that a graph and its segmentation are sound. Nothing is changed.

    Parameters
    ----------
    graph_id
        Name of the graph.
    checks
        Names of the checks to run. Default: all.
    sample
        Number of chunks whose voxels are checked, chosen with a fixed seed. Default: all chunks.
    workers
        Number of threads for the checks of voxels.

    Returns
    -------
    VerifyReport
        ``ok`` tells whether all checks passed; ``summary()`` names the first place of every fault.

    Raises
    ------
    NotFoundError
        If no such graph is registered.
    ConfigError
        If there is no check of a given name.
    """
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.verify.dataset import verify_dataset

    return verify_dataset(open_dataset(graph_id, home), checks=checks, sample=sample, workers=workers)


@behind_the_wall
def list_stuck(graph_id: str, home: Home = None, *, min_age: float = 600.0, deep: bool = False) -> list[Unfinished]:
    """Return the operations of a graph that have begun and have not ended.

    Parameters
    ----------
    graph_id
        Name of the graph.
    min_age
        Age in seconds above which an operation is listed; younger ones may be running normally.
    deep
        Whether all rows are searched for locks of operations that have ended.
    """
    from sv_pipeline.recovery import list_stuck as find
    from sv_pipeline.registry import open_dataset

    return find(open_dataset(graph_id, home).graph, min_age=min_age, deep=deep)


@behind_the_wall
def recover(graph_id: str, operation_id: int, home: Home = None, *, take_locks: bool = False) -> RecoveryReport:
    """Roll back what an unfinished operation wrote, make its edit again, and release its locks.

    Parameters
    ----------
    graph_id
        Name of the graph.
    operation_id
        Number of the operation.
    take_locks
        Whether locks that somebody has removed are restored first, if nobody has edited since.

    Raises
    ------
    NotFoundError
        If there is no such graph or operation.
    NotStuckError
        If there is nothing to recover.
    RecoveryStoppedError
        If the locks are in an unexpected state; nothing was changed.
    SvPipelineError
        If the recovery failed; the operation stays listed, and can be recovered again.
    """
    from sv_pipeline.recovery import recover as recover_operation
    from sv_pipeline.registry import open_dataset

    return recover_operation(open_dataset(graph_id, home).graph, operation_id, take_locks=take_locks)
