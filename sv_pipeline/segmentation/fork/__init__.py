"""The fork of a graph: reading it, committing voxels to it, and our own records beside them."""

from sv_pipeline.moved import contents_of_former_module

__getattr__ = contents_of_former_module(__name__, "fork")
