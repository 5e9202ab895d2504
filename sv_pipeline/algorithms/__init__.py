"""Pure functions on arrays: no input or output, no storage, no state."""
