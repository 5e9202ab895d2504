"""The demo's tissue: synthetic neuropil with a known truth."""
