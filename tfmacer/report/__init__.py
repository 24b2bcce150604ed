"""Tables, plots and a page from certification logs. No TensorFlow."""
