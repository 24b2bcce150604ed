"""Converts certificates and models to the messages of `certification.proto`."""

from serving import certification_pb2 as pb
from tfmacer.guarantee.certificate import Certificate
from tfmacer.votes.endpoint import ServedModel


def model_message(model: ServedModel) -> pb.Model:
    """A served model, as far as a certificate depends on it."""
    smoothing = model.smoothing
    return pb.Model(
        name=model.name,
        version=model.version,
        digest=smoothing.model_digest,
        sigma=smoothing.sigma,
        noise_family=smoothing.noise_family,
        noise_params=smoothing.noise_params,
        block_size=smoothing.block_size,
        num_classes=smoothing.num_classes,
        input_shape=smoothing.input_shape,
        precision=smoothing.precision,
        generator=smoothing.generator,
    )


def certificate_message(
    certificate: Certificate, model: ServedModel, *, certificate_id: str, sha256: str, drawn: int
) -> pb.Certificate:
    """A certificate as it is handed out, with `drawn` estimation draws so far."""
    draws, rule = certificate.draws, certificate.rule
    return pb.Certificate(
        predict=certificate.predict,
        radius=certificate.radius,
        norm=certificate.norm,
        alpha=rule.alpha,
        select_counts=draws.select_counts,
        counts=draws.counts,
        n0=draws.n0,
        n=draws.n,
        p_lower=certificate.p_lower,
        p_upper_second=certificate.p_upper_second,
        bound=rule.bound,
        bilateral=rule.bilateral,
        stopped_early=certificate.stopped_early,
        model=model_message(model),
        pixels_sha256=sha256,
        certificate_id=certificate_id,
        statement=certificate.statement(),
        drawn=drawn,
    )
