"""The embedded model server: what TensorFlow Serving does, on Python's TensorFlow.

For laptops, tests and small deployments: `python -m serving.model_server`.
"""
