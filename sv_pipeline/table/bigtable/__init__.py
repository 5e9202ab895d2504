"""Bigtable: the backend for tables in Google Cloud, or in its emulator."""
