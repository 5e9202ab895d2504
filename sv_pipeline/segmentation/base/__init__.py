"""The base of a watershed: its plan, the populate that fills it with voxels, and the progress of the populate."""

from sv_pipeline.moved import contents_of_former_module

__getattr__ = contents_of_former_module(__name__, "base")
