"""What can be said from counts: bounds, radii, certificates. No TensorFlow."""
