"""Labelled images: splits by position, from TensorFlow Datasets, folders and functions."""
