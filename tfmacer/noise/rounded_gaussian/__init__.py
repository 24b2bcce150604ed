"""Gaussian noise rounded to whole steps of 8-bit pixels."""
