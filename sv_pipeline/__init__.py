"""sv_pipeline: from a segmentation in a bucket to a proofreadable, editable, self-healing chunked graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sv_pipeline.redaction import guard_logging

if TYPE_CHECKING:
    from sv_pipeline.proofreading import open_graph as open_graph

__all__ = ["open_graph"]

guard_logging()


def __getattr__(name: str) -> Any:
    # The package is imported by every worker and by every `--help`: what it offers is loaded when it is asked for.
    if name == "open_graph":
        from sv_pipeline.proofreading import open_graph

        return open_graph
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
