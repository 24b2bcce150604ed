"""Ratios of two things measured in one run, and the scripts behind docs/results.md."""
