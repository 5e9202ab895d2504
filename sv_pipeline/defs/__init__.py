"""The Dagster definitions. They wire; they hold no logic."""
