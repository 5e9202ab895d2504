"""What a test needs from the machine: skip with the reason where it is missing, or fail where all is required."""

from __future__ import annotations

import os

import pytest


def need(available: object, reason: str) -> None:
    """Skip the calling test with ``reason`` unless ``available``; fail it if SV_PIPELINE_REQUIRE_ALL=1."""
    if available:
        return
    if os.environ.get("SV_PIPELINE_REQUIRE_ALL") == "1":
        pytest.fail(f"needed here, but missing: {reason}", pytrace=False)
    pytest.skip(reason)
