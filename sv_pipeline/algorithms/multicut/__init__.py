"""The cheapest cut between the points of a split request, on the local graph of supervoxels. Knows no table."""

from typing import Any


def __getattr__(name: str) -> Any:
    # What `cut` holds was a module of this package's name before.
    from importlib import import_module

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("sv_pipeline.algorithms.multicut.cut"), name)
