"""Tables in every backend."""

from __future__ import annotations

from sv_pipeline_tests.table.conftest import new_table as new_table
from sv_pipeline_tests.table.conftest import table as table
