"""Text to vectors, on sentence-transformers: loading, markers, token offsets."""
