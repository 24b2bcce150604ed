"""Noise of density p(z) ~ |z|_inf^-k exp(-|z|_2^2 / (2 sigma^2))."""
