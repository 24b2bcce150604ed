"""tfmacer: certified-robust image classifiers for TensorFlow."""
