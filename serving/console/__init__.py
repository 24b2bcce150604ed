"""The parts of the web console and its JSON endpoint, for `serving.sidecar`. No TensorFlow."""
