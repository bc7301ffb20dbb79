"""One file a method: what its paper adds, as a factory of pipeline stages."""
