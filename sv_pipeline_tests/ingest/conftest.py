"""Tables in every backend, and small graphs in them."""

from __future__ import annotations

from sv_pipeline_tests.table.conftest import new_table as new_table
