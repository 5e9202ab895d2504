"""The terminal. It wires; it holds no logic."""
