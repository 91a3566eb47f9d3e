"""Models on disk: found, described, read lazily, compared, and written whole."""
