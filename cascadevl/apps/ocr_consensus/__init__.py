"""Several readings of a page become one transcript whose doubts are marked."""
