"""Certifies images: `certify_images`, which commands and callbacks call as well, and its checks."""
