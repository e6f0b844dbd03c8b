"""Many devices, from outside: the model knows nothing of them."""
