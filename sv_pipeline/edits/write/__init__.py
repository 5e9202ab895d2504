"""Makes a planned edit durable: locks, and the order of its writes."""
