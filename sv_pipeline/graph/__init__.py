"""The chunked graph at rest: hierarchy, edges, lineage; batched reads, and writes as values."""
