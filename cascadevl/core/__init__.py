"""What things are: plain Python, no torch. Every other room stands on this one."""
