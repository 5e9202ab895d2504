"""Owns the OCDBT coordinator: a server process through which several workers commit to one base."""

from __future__ import annotations

ADDRESS_VARIABLE = "SV_PIPELINE_COORDINATOR"
"""Environment variable: host:port of the coordinator."""
