"""Smoothed classifiers as SavedModels for TensorFlow Serving and other TensorFlow code."""
