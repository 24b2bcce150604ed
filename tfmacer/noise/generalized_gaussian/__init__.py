"""Noise of density p(z) ~ |z|_2^-k exp(-|z|_2^2 / (2 sigma^2))."""
