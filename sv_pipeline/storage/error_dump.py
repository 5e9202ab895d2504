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
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sv_pipeline.redaction import redacted, redacted_value, scrub
from sv_pipeline.storage import kv

__all__ = ["ENVIRONMENT_VARIABLE", "dump_errors"]

ENVIRONMENT_VARIABLE = "ERROR_DUMP"
PACKAGES = ("sv_pipeline", "tensorstore", "numpy", "tinybrain")

_logger = logging.getLogger(__name__)


@contextmanager
def dump_errors(name: str, details: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Write a JSON file about any error that leaves the block, and raise the error again.

    Parameters
    ----------
    name
        Name of what failed, e.g. ``populate_0_1_0``; the file's name begins with it.
    details
        Returns task-specific details (places, shapes, specs); called only after a failure.
    """
    try:
        yield
    except Exception as error:
        folder = os.environ.get(ENVIRONMENT_VARIABLE)
        if folder:
            _dump(folder, name, details, error)
        raise


def _dump(folder: str, name: str, details: Callable[[], dict[str, Any]], error: Exception) -> None:
    now = datetime.now(UTC)
    key = f"{name}_{now:%Y%m%dT%H%M%S}_{uuid4().hex[:8]}.json"
    scrub(error)
    try:
        content: dict[str, Any] = {
            "task": name,
            "time": now.isoformat(),
            "where": {
                "host": socket.gethostname(),
                "process": os.getpid(),
                "command": sys.argv,
                "folder": os.getcwd(),  # noqa: PTH109 - a string is needed
            },
            "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
            "error": {"type": type(error).__name__, "message": str(error), "kind": getattr(error, "kind", None)},
            "traceback": traceback.format_exception(error),
        }
        try:
            content.update(details())
        except Exception as failure:  # noqa: BLE001 - the rest of the dump is written nevertheless
            content["details"] = f"not available: {failure!r}"
        shown = json.dumps(redacted_value(content), indent=1, default=lambda value: redacted(str(value)))
        kv.write_bytes(folder, key, shown.encode())
        _logger.error("%s failed; details are in %s%s", name, kv.as_url(folder), key)
    except Exception:
        # An error while writing the dump must not replace the error of the task.
        _logger.exception("could not dump the failure of %s to %s", name, folder)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
