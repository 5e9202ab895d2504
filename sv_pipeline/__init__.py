"""sv_pipeline turns a segmentation in a bucket into a chunked graph that can be proofread and recovers from crashes.

The names in ``__all__`` are the public API. Everything else may change from one version to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Two packages have the same names as functions. They are imported first, because a later import would replace the
# function with the package.
import sv_pipeline.ingest
import sv_pipeline.verify  # noqa: F401
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.graphs import ingest, list_stuck, recover, register, status, verify
from sv_pipeline.moved import find_moved_modules
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.redaction import guard_logging

if TYPE_CHECKING:
    from sv_pipeline.proofreading import open_graph

__all__ = [
    "EditRefused",
    "Reason",
    "SvPipelineError",
    "__version__",
    "ingest",
    "list_stuck",
    "open_graph",
    "recover",
    "register",
    "status",
    "verify",
]

__version__: str

guard_logging()
find_moved_modules()


def __getattr__(name: str) -> Any:
    # Every worker and every `--help` imports this package, so what takes long to load is loaded on first access.
    if name == "open_graph":
        from sv_pipeline.proofreading import open_graph

        return open_graph
    if name == "__version__":
        from importlib.metadata import version

        return version("sv_pipeline")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
