"""Samples become batches."""
