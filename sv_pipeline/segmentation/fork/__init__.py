"""The fork of a graph: reading it, committing voxels to it, and our own records beside them."""

from typing import Any


def __getattr__(name: str) -> Any:
    # What `fork` holds was a module of this package's name before.
    from importlib import import_module

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("sv_pipeline.segmentation.fork.fork"), name)
