"""Vectors in files: segments, codecs, document names, and the stages that read them."""
