"""Owns the dump of a failed task: a JSON in the folder or bucket that the environment variable ERROR_DUMP names."""

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
    """Write a JSON about any error that leaves the block, then let it pass.

    Parameters
    ----------
    name
        What failed, e.g. ``populate_0_1_0``; starts the file's name.
    details
        Makes the dump's own part (places, shapes, specs); called after a failure only.
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
                "folder": os.getcwd(),  # noqa: PTH109 - a text is what we want
            },
            "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
            "error": {"type": type(error).__name__, "message": str(error), "kind": getattr(error, "kind", None)},
            "traceback": traceback.format_exception(error),
        }
        try:
            content.update(details())
        except Exception as failure:  # noqa: BLE001 - what is known is dumped nevertheless
            content["details"] = f"not available: {failure!r}"
        shown = json.dumps(redacted_value(content), indent=1, default=lambda value: redacted(str(value)))
        kv.write_bytes(folder, key, shown.encode())
        _logger.error("%s failed; details are in %s%s", name, kv.as_url(folder), key)
    except Exception:
        # The error of the task is what matters; one of its dump must not take its place.
        _logger.exception("could not dump the failure of %s to %s", name, folder)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
