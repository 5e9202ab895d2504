"""The former function `lag`, which is a method of `Fork` now, for notebooks and scripts. New code uses the method."""

from __future__ import annotations

import warnings
from pathlib import Path

from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.pending import Lag, PendingEntry, lag_of

__all__ = ["Lag", "PendingEntry", "lag", "lag_of"]


def lag(watershed_url: str | Path, graph_id: str) -> Lag:
    """Return how far the coarser mips of a fork are behind; use `Fork.lag` instead."""
    warnings.warn("lag() has become Fork.lag().", DeprecationWarning, stacklevel=2)
    return Fork(watershed_url, graph_id).lag()
