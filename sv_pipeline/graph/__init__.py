"""The chunked graph at rest: hierarchy, edges, lineage. Reads in batches; gives writes as values."""
