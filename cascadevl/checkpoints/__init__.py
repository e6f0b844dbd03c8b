"""Official folders in, official folders out."""
