"""Fixtures that all tests share."""

from __future__ import annotations

import os

from sv_pipeline_tests.servers.bigtable import bigtable_emulator as bigtable_emulator
from sv_pipeline_tests.servers.gcs_client import gcs_process as gcs_process
from sv_pipeline_tests.servers.gcs_client import gcs_server as gcs_server
from sv_pipeline_tests.servers.gcs_client import storage_url as storage_url

os.environ.setdefault("NO_GCE_CHECK", "true")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
