"""Certifies images: the one call behind the command, callbacks and your own code, and its checks."""
