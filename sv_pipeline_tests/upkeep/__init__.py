"""Tests of the upkeep of stores."""
