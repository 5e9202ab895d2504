"""Real servers that tests run against, each in its own process: the Bigtable emulator and a GCS-compatible store."""
