"""From model inputs to answers."""
