"""Published runs as functions: what to train, on what, for how long."""
