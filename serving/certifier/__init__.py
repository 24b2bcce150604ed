"""The parts of the certification sidecar; `serving.sidecar` puts them together. No TensorFlow."""
