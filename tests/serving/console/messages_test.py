"""The JSON has the fields of the protos, no more and no fewer."""

import pytest

from serving import certification_pb2 as pb
from serving.console import messages


@pytest.mark.parametrize(
    ("schema", "message", "more", "less"),
    [
        (messages.Pixels, pb.Pixels, set(), set()),
        (messages.ServedModel, pb.Model, set(), set()),
        (messages.Prediction, pb.Prediction, {"pixels"}, set()),
        (messages.Certificate, pb.Certificate, {"pixels"}, set()),
        (messages.PredictRequest, pb.PredictRequest, {"image", "resize"}, set()),
        # What stops early is chosen by its own field; `fixed` is what happens without one.
        (messages.CertifyRequest, pb.CertifyRequest, {"image", "resize"}, {"fixed"}),
    ],
)
def test_fields_are_the_protos(schema, message, more, less) -> None:
    assert set(schema.model_fields) - more == set(message.DESCRIPTOR.fields_by_name) - less


def test_an_abstention_without_numbers_is_whole() -> None:
    answer = messages.Certificate.of(
        pb.Certificate(predict=-1, counts=[2**40, 0], model=pb.Model())
    )
    assert answer.counts == [2**40, 0]
    assert answer.p_upper_second is None
    assert (answer.radius, answer.bilateral) == (0.0, False)
