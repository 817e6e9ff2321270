"""Our models, one a file; each file's `MODEL` is what the registry finds."""
