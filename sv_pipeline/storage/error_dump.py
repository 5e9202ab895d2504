"""The dump of a failed task: a JSON file in the folder or bucket that the environment variable ERROR_DUMP names."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.redaction import redacted, redacted_value, scrub
from sv_pipeline.storage import kv

__all__ = ["ENVIRONMENT_VARIABLE", "add_details", "dump_errors"]

ENVIRONMENT_VARIABLE = "ERROR_DUMP"
PACKAGES = ("sv_pipeline", "tensorstore", "numpy", "tinybrain")

PLACE_VARIABLES = {
    "pod": ("POD_NAME", "MY_POD_NAME", "K8S_POD_NAME"),
    "namespace": ("POD_NAMESPACE", "MY_POD_NAMESPACE", "K8S_NAMESPACE"),
    "node": ("NODE_NAME", "MY_NODE_NAME", "K8S_NODE_NAME", "KUBERNETES_NODE_NAME"),
    "job_index": ("JOB_COMPLETION_INDEX",),
}
"""Environment variables to which Kubernetes' downward API is usually bound, by what they name."""

_logger = logging.getLogger(__name__)
_depth: ContextVar[int] = ContextVar("depth of dump_errors", default=0)
_ATTRIBUTE = "_sv_pipeline_dump"


@contextmanager
def dump_errors(name: str, details: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Write a JSON file about any error that leaves the block, and raise the error again.

    Blocks may be nested. The outermost one writes the file, once for each error. The file has the name of the innermost
    block, which knows best what failed, and the details of all; where two have the same key, the innermost counts.

    Parameters
    ----------
    name
        Name of what failed, e.g. ``populate_0_1_0``; the file's name begins with it.
    details
        Returns task-specific details (places, shapes, specs); called only after a failure.
    """
    depth = _depth.get()
    _depth.set(depth + 1)
    try:
        yield
    except Exception as error:
        add_details(error, name, details)
        folder = os.environ.get(ENVIRONMENT_VARIABLE)
        if folder and depth == 0:
            _dump(folder, error)
        raise
    finally:
        _depth.set(depth)


def add_details(error: Exception, name: str, details: Callable[[], dict[str, Any]]) -> None:
    """Do for an error that was caught what `dump_errors` does for one that leaves its block, but write nothing."""
    if not os.environ.get(ENVIRONMENT_VARIABLE):
        return
    try:
        found = details()
    except Exception as failure:  # noqa: BLE001 - the rest of the dump is written nevertheless
        found = {"details": f"not available: {failure!r}"}
    known = error.__dict__.setdefault(_ATTRIBUTE, {"task": name})
    error.__dict__[_ATTRIBUTE] = {**found, **known}


def _dump(folder: str, error: Exception) -> None:
    now = datetime.now(UTC)
    details = error.__dict__.pop(_ATTRIBUTE, {})
    name = details.pop("task", "task")
    key = f"{name}_{now:%Y%m%dT%H%M%S}_{uuid4().hex[:8]}.json"
    scrub(error)
    try:
        content: dict[str, Any] = {
            "task": name,
            "time": now.isoformat(),
            "where": _where(),
            "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
            "error": {"type": type(error).__name__, "message": str(error), "kind": getattr(error, "kind", None)},
            "traceback": traceback.format_exception(error),
            **details,
        }
        shown = json.dumps(redacted_value(content), indent=1, default=lambda value: redacted(str(value)))
        kv.write_bytes(folder, key, shown.encode())
        _logger.error("%s failed; details are in %s%s", name, kv.as_url(folder), key)
    except SvPipelineError as failure:
        _logger.error("could not dump the failure of %s: %s", name, failure)  # noqa: TRY400 - the message says it all
    except Exception:
        # An error while writing the dump must not replace the error of the task.
        _logger.exception("could not dump the failure of %s to %s", name, folder)


def _where() -> dict[str, Any]:
    """The process, its host and, where the environment names them, its pod and node."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": sys.argv,
        "folder": os.getcwd(),  # noqa: PTH109 - a string is needed
    }
    for name, variables in PLACE_VARIABLES.items():
        value = next((os.environ[variable] for variable in variables if os.environ.get(variable)), None)
        if value:
            found[name] = value
    return found


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
