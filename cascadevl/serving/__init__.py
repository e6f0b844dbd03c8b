"""The engine over HTTP: an OpenAI-compatible server, safe by default."""
