"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

from sv_pipeline_tests.properties import PROFILE, QUICK_EXAMPLES, SOAK_EXAMPLES

pytest_plugins = ["sv_pipeline.testing.fixtures"]

# Machines that run tests are shared: how long one example takes says nothing. CI runs the same examples each time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("soak", deadline=None, print_blob=True, max_examples=SOAK_EXAMPLES)
settings.register_profile("quick", deadline=None, max_examples=QUICK_EXAMPLES)
settings.load_profile(PROFILE)

os.environ.setdefault("NO_GCE_CHECK", "true")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
# A shell that starts tests in the background has them ignore Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
