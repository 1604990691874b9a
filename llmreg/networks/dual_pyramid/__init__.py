"""Dual-PRNet: a pyramid of both images' features."""
