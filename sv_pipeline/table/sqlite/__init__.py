"""SQLite: the backend for a table in one file of one machine."""
