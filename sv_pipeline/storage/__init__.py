"""Bytes at rest: key-value access, OCDBT databases, precomputed volumes, errors of storages. Knows no graph."""
