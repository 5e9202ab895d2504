"""The fork of a graph: reads it, commits voxels to it, and keeps our own records beside them."""

from sv_pipeline.moved import contents_of_former_module

__getattr__ = contents_of_former_module(__name__, "fork")
