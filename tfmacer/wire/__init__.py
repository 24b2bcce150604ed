"""Wire-compatible messages of TensorFlow Serving's API, usable without TensorFlow.

`serving_pb2` is generated from `serving.proto` (`make protos`); `tensors` turns its tensors into
NumPy arrays and back; the paths below are the methods that its messages are sent to. `channel` is
TLS on the way there.
"""

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
