"""Coarser mips of a fork: how far they are behind edits, and making them catch up."""
