"""Bytes at rest: key-value access, OCDBT databases, precomputed volumes, and what storages do wrong. Knows no graph."""
