"""Is this answer right? Plain Python, without torch."""
