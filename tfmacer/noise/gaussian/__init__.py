"""Isotropic Gaussian noise."""
