"""Keeps the package from warning of each doubtful cut: benchmarks make many, and their tables would be lost in it."""

import logging

logging.getLogger("sv_pipeline").setLevel(logging.ERROR)
