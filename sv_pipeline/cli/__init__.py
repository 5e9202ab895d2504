"""The command line. It calls the library and prints results, but holds no logic."""
