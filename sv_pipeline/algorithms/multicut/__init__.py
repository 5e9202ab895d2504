"""The minimum cut between the points of a split request, on the local graph of supervoxels. Knows no table."""

from sv_pipeline.moved import contents_of_former_module

__getattr__ = contents_of_former_module(__name__, "cut")
