"""The base of a watershed: its plan, how voxels get into it, and how far that is."""

from sv_pipeline.moved import contents_of_former_module

__getattr__ = contents_of_former_module(__name__, "base")
