"""Comparison of methods on a dataset: trained networks, their ablations, and classical registration."""
