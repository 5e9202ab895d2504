"""Pure functions on arrays: no I/O, no storage, no state."""
