"""Fixtures of the command line's tests: the command line itself, and a graph that was built once, copied for each."""

from __future__ import annotations

from sv_pipeline_tests.ingest.build_fixtures import cli as cli
