"""The parts of the embedded model server: what TensorFlow Serving does, on Python's TensorFlow.

For laptops, tests and small deployments; `serving.model_server` puts them together.
"""
