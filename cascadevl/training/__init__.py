"""Parameters learn: one loop, many objectives."""
