"""Rows at rest: one interface over Bigtable and SQLite; counters, locks, the layout of rows and columns."""
