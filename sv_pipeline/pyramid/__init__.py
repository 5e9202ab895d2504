"""Coarser mips of a fork: how far they are behind edits, and how they are brought up to date."""
