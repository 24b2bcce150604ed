"""Adversarial images: to train on, and to test certificates with."""
