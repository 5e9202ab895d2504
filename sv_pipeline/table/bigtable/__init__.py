"""Bigtable: the backend for tables in Google Cloud, or in its emulator."""

from sv_pipeline.moved import contents_of_former_module

__getattr__ = contents_of_former_module(__name__, "table")
