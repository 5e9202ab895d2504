"""Fixtures that all tests share."""

from __future__ import annotations

import os

os.environ.setdefault("NO_GCE_CHECK", "true")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
