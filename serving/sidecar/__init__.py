"""The certification sidecar: `python -m serving.sidecar`. Needs no TensorFlow."""
