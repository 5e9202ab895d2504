"""Tables and files shared with PyChunkedGraph v3: what it finds in ours, and what we make of its own."""
