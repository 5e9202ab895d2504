"""The chunked graph at rest: hierarchy, edges, lineage. Reads in batches; returns writes as values."""
