"""Modules for one device; their parameters keep the official names. Read `internvl.py` first."""
