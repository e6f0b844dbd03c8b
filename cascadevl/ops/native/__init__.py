"""Kernels in C for CPUs, compiled at first use; every one has a slower way in torch to the same result."""
