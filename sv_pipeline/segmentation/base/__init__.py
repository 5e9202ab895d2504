"""The base of a watershed: its plan, how voxels get into it, and how far that is."""

from typing import Any


def __getattr__(name: str) -> Any:
    # What `base` holds was a module of this package's name before.
    from importlib import import_module

    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("sv_pipeline.segmentation.base.base"), name)
