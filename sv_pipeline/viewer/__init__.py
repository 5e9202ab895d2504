"""A graph in neuroglancer, in a browser: layers of objects and images, and edits by keys. Plans no edit itself."""
