"""The Dagster definitions. They call the library and report results, but hold no logic."""
