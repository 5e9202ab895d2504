"""The operation log: rows of an operation, its owner, what is unfinished, and what became of it."""
