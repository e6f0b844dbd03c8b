"""Load on any OpenAI-compatible server, and what it felt like. Works without torch and without an HTTP library."""
