"""What is kept: run directories and certification logs. No TensorFlow."""
