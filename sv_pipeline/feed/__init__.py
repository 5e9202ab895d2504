"""The edit feed: finished operations of a graph in one durable order, as events that are delivered at least once."""
