"""SQLite: the backend for a table in one file of one machine."""

from sv_pipeline.moved import contents_of_former_module

__getattr__ = contents_of_former_module(__name__, "table")
