"""Measurements: this machine's limits, lutcc's kernels, and what a user would run instead."""
