"""Things made of the engine and the methods: programs for people."""
