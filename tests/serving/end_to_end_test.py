"""A real export behind the embedded server, the sidecar in front: one certificate, three ways."""

import dataclasses
import json
from pathlib import Path

import grpc
import numpy as np
import portpicker
import pytest
from processes import serving

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.rule import Rule
from tfmacer.records import chain
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.logs import read_log
from tfmacer.votes.driver import Task, draw_certificates
from tfmacer.votes.remote import RemoteVotes

SEED, BLOCK = 11, 32


@pytest.fixture(scope="module")
def network():
    """A small untrained classifier, its smoothing, and its base path as served."""
    import keras

    from tfmacer.records.runs import Smoothing

    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    smoothing = Smoothing(
        sigma=0.25, num_classes=3, input_shape=(8, 8, 1), model_digest="0" * 64, block_size=BLOCK
    )
    return model, smoothing


@pytest.fixture(scope="module")
def base_path(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    from export.signatures import SmoothedClassifier

    module = SmoothedClassifier(*network, 100)
    base = tmp_path_factory.mktemp("served")
    tf.saved_model.save(module, str(base / "5"), signatures=module.signatures())
    return base


@pytest.fixture(scope="module")
def model_server(base_path: Path, tmp_path_factory: pytest.TempPathFactory):
    port = portpicker.pick_unused_port()
    flags = [f"--model_base_path={base_path}", "--model_name=m", f"--port={port}"]
    log = tmp_path_factory.mktemp("logs") / "server"
    with serving("serving.model_server", *flags, stderr=log):
        yield f"127.0.0.1:{port}"


IMAGE = np.random.default_rng(0).random((8, 8, 1)).astype(np.float32)


def test_the_certificate_over_grpc_is_the_one_of_the_export(
    model_server, base_path, tmp_path: Path
) -> None:
    from tfmacer.votes.local import SavedModelVotes

    port = portpicker.pick_unused_port()
    flags = [f"--backend={model_server}", "--model_name=m", f"--port={port}", "--metrics_port=0"]
    with (
        serving("serving.sidecar", *flags, f"--seed={SEED}", stderr=tmp_path / "log"),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        pixels = pb.Pixels(shape=IMAGE.shape, float32=IMAGE.astype("<f4").tobytes())
        message = CertifierStub(channel).Certify(
            pb.CertifyRequest(pixels=pixels, n=2000, alpha=0.01), timeout=120
        )
    rule = Rule(alpha=0.01, bound="late_spending", n=2000, block_size=BLOCK)
    source = SavedModelVotes(base_path)
    *_, last = draw_certificates(source, [Task.seeded(SEED, 0, IMAGE)], rule)
    assert last.certificate is not None
    # Every draw's noise is the same. The threads of the two processes may differ, and with them
    # the last bit of a logit: a vote may move where two classes tie within rounding.
    moved = np.abs(np.array(message.counts) - np.array(last.certificate.draws.counts)).sum()
    assert moved <= 2
    assert message.predict == last.certificate.predict
    assert message.model.version == 5


def test_served_certificates_are_drawn_again_from_the_audit_log(
    model_server, tmp_path: Path, capsys
) -> None:
    from tfmacer import verify

    port = portpicker.pick_unused_port()
    audit = tmp_path / "audit.jsonl"
    flags = [f"--backend={model_server}", "--model_name=m", f"--port={port}", "--metrics_port=0"]
    with (
        serving("serving.sidecar", *flags, f"--audit_log={audit}", stderr=tmp_path / "log") as run,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = CertifierStub(channel)
        pixels = pb.Pixels(shape=IMAGE.shape, float32=IMAGE.astype("<f4").tobytes())
        stub.Certify(pb.CertifyRequest(pixels=pixels, n=2000, alpha=0.01), timeout=120)
        list(stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=1000), timeout=120))
        run.terminate()
        assert run.wait(60) == 0
    assert verify.main([f"--audit_log={audit}"]) == 0
    source = [f"--server={model_server}", "--model_name=m"]
    assert verify.main([f"--audit_log={audit}", "--replay", *source]) == 0
    assert "2 certificates verified, all votes drawn again" in capsys.readouterr().out
    lines = audit.read_text().splitlines()
    # One vote moved, and all that follows from the votes computed anew: only drawing again tells.
    entry = AuditEntry.from_line(lines[0])
    draws = entry.certificate.draws
    votes = list(draws.counts)
    top = votes.index(max(votes))
    votes[top] -= 1
    votes[(top + 1) % 3] += 1
    forged = certify(
        dataclasses.replace(draws, counts=tuple(votes)),
        entry.certificate.rule,
        entry.smoothing.distribution,
    )
    fields = dataclasses.replace(entry, certificate=forged).fields()
    line, link = chain.to_line(fields, chain.BEGINNING)
    audit.write_text(line + "\n")
    assert verify.main([f"--audit_log={audit}"]) == 0
    assert verify.main([f"--audit_log={audit}", "--replay", *source]) == 1
    assert "drawn again the votes are" in capsys.readouterr().err
    # Whoever kept the newest digest sees it without drawing, and the second entry does not follow.
    head = json.loads(lines[1])["digest"]
    assert verify.main([f"--audit_log={audit}", f"--audit_head={head}"]) == 1
    assert f"no entry has the digest {head}" in capsys.readouterr().err
    audit.write_text(f"{line}\n{lines[1]}\n")
    assert verify.main([f"--audit_log={audit}"]) == 1
    assert f"the entry before it is 1, digest {link.digest}" in capsys.readouterr().err
    audit.write_text(lines[0].replace("certificate_id", "identifier") + "\n")
    assert verify.main([f"--audit_log={audit}"]) == 1
    assert "audit.jsonl:1: not an audit entry" in capsys.readouterr().err


def test_remote_votes_do_not_depend_on_the_cut(model_server) -> None:
    votes = RemoteVotes.connect(model_server, "m", parallelism=2)
    seeds = np.array([[5, -6]], np.int32)

    def sample(*parts: tuple[int, int]):
        rows = len(parts)
        return votes.sample(
            np.repeat(IMAGE[np.newaxis], rows, axis=0),
            np.repeat(seeds, rows, axis=0),
            np.array([offset for offset, _ in parts], np.int32),
            np.array([n for _, n in parts], np.int32),
        )

    whole = sample((0, 500))
    cut = sample((0, 100), (100, 1), (101, 299), (400, 100))
    np.testing.assert_array_equal(cut.counts.sum(axis=0), whole.counts[0])
    np.testing.assert_allclose(cut.sums.sum(axis=0), whole.sums[0], rtol=1e-9)
    np.testing.assert_allclose(cut.square_sums.sum(axis=0), whole.square_sums[0], rtol=1e-9)
    votes.close()


def test_a_server_gives_the_log_of_its_export(
    model_server, base_path, tmp_path: Path, monkeypatch
) -> None:
    """The command through the server and on the export itself, both with one intra-op thread."""
    from tfmacer import certify
    from tfmacer.votes import devices

    # TensorFlow runs here already, with as many.
    monkeypatch.setattr(devices, "use_threads", lambda *_: None)
    plan = ["--dataset=tiny_images:tiny_images", "--num_examples=6", "--skip=5", "--n=2000"]
    sources = {
        "served": [f"--server={model_server}", "--model_name=m"],
        "loaded": [f"--saved_model={base_path}"],
    }
    found = {}
    for name, source in sources.items():
        out = tmp_path / f"{name}.tsv"
        assert certify.main([*source, f"--out={out}", *plan]) == 0
        found[name] = [dataclasses.replace(record, seconds=0.0) for record in read_log(out).records]
    assert len(found["served"]) == 6
    assert found["served"] == found["loaded"]


def test_what_the_graph_asserts_comes_back_as_a_refusal(model_server) -> None:
    """A shape that the model does not take never gets as far as votes."""
    from tfmacer.votes.endpoint import BackendError

    votes = RemoteVotes.connect(model_server, "m")
    with pytest.raises(BackendError, match="INVALID_ARGUMENT") as caught:
        votes.sample(
            np.zeros((1, 8, 8, 1), np.float32),
            np.zeros((1, 2), np.int32),
            np.array([-5], np.int32),
            np.array([32], np.int32),
        )
    assert caught.value.code is grpc.StatusCode.INTERNAL
    votes.close()
