"""The client, asked as a user asks it."""

import concurrent.futures
import hashlib
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from recording_proxy import proxied
from typing_extensions import override

from serving import certification_pb2 as pb
from serving import client
from serving.certification_pb2_grpc import CertifierServicer, add_CertifierServicer_to_server


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    levels = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def test_it_prints_label_radius_confidence_and_statement(start, digit, capsys) -> None:
    sidecar = start(seed=1)
    assert client.main([f"--target={sidecar.target}", str(digit), "--n=3000"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "label: 1"
    assert lines[1].startswith("certified radius: 0.")
    assert lines[1].endswith("(l2)")
    assert lines[2] == "confidence: 99.9%"
    assert lines[-1].startswith("Except with probability 0.001")
    assert "3,000 of 3,000 samples" in err


def test_one_certificate_as_json(start, digit, capsys) -> None:
    sidecar = start(seed=1)
    flags = ["--nostream", "--json", "--n=500", "--n0=50", "--alpha=0.01"]
    assert client.main([f"--target={sidecar.target}", *flags, str(digit)]) == 0
    certificate = json.loads(capsys.readouterr().out)
    assert certificate["bound"] == "late_spending"
    assert (certificate["n"], certificate["n0"], certificate["alpha"]) == ("500", "50", 0.01)


@pytest.mark.parametrize("stop", ["decide:0.2", "precision:0.4", "budget:5"])
def test_stop_rules_are_passed_on(start, digit, capsys, stop: str) -> None:
    sidecar = start(seed=1)
    args = [f"--target={sidecar.target}", "--nostream", "--json", f"--stop={stop}", str(digit)]
    assert client.main(args) == 0
    assert json.loads(capsys.readouterr().out)["bound"] == "beta_binomial"


def test_abstention_is_said_in_words(start, backend, digit, capsys) -> None:
    backend.probabilities = [0.4, 0.35, 0.25]
    assert client.main([f"--target={start().target}", str(digit), "--n=500"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("label: abstained\ncertified radius: 0.0000")


def test_a_printed_radius_is_rounded_down(start, backend, digit, capsys) -> None:
    sidecar = start(seed=1)
    base = [f"--target={sidecar.target}", "--nostream", "--n=500", str(digit)]
    assert client.main([*base, "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)["radius"]
    assert client.main(base) == 0
    printed = float(capsys.readouterr().out.splitlines()[1].split()[2])
    assert exact - 1e-4 < printed <= exact


class Hostile(CertifierServicer):
    """A server whose every text and number is its own invention."""

    alpha = 0.001
    details = ""

    @override
    def GetModel(self, request, context):
        return pb.Model(input_shape=(4, 4, 1))

    @override
    def Certify(self, request, context):
        if self.details:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.details)
        values = np.frombuffer(request.pixels.uint8, np.uint8).astype(np.float32)
        return pb.Certificate(
            predict=1,
            radius=0.3,
            norm="l2\x1b]0;owned\x07",
            alpha=self.alpha,
            certificate_id="7\nlabel: 2",
            statement="\u202efine",
            pixels_sha256=hashlib.sha256((values / np.float32(255)).tobytes()).hexdigest(),
            n=1000,
            drawn=500,
        )

    @override
    def CertifyStream(self, request, context):
        yield self.Certify(request, context)


@pytest.fixture
def hostile():
    servicer = Hostile()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    add_CertifierServicer_to_server(servicer, server)
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(0).wait()


def test_what_a_server_writes_is_shown_and_not_obeyed(hostile, digit, capsys) -> None:
    assert client.main([f"--target={hostile.target}", "--nostream", str(digit)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "label: 1",
        "certified radius: 0.2999 (l2\\x1b]0;owned\\x07)",
        "confidence: 99.9%",
        "samples: 0 to choose the class, 1000 to bound it",
        "certificate: 7\\nlabel: 2",
        "\\u202efine",
    ]
    assert client.main([f"--target={hostile.target}", "--nostream", "--json", str(digit)]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def test_the_live_bar_rounds_down_too(hostile, digit, capsys) -> None:
    assert client.main([f"--target={hostile.target}", str(digit)]) == 0
    assert "radius 0.2999" in capsys.readouterr().err


def test_refusals_are_one_harmless_line(hostile, digit, capsys) -> None:
    hostile.details = f"no\x1b[2J\nlabel: 3 {'z' * 3000!r}"
    assert client.main([f"--target={hostile.target}", "--nostream", str(digit)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "INVALID_ARGUMENT: no\\x1b[2J label: 3 'zzz" in line
    assert len(line) < 400


@pytest.mark.parametrize("alpha", [float("nan"), 0.0, 1.0, -1.0])
def test_an_alpha_that_cannot_be_is_refused(hostile, digit, capsys, alpha: float) -> None:
    hostile.alpha = alpha
    assert client.main([f"--target={hostile.target}", "--nostream", str(digit)]) == 1
    assert "the certificate has alpha" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("alpha", "shown"),
    [
        (0.001, "99.9"),
        (0.05, "95"),
        (0.3, "70"),
        (1e-9, "99.9999999"),
        (1e-17, "99.9999999999"),
        (5e-324, "99.9999999999"),
        (0.123456789012345, "87.6543210987"),
    ],
)
def test_confidence_is_rounded_down(alpha: float, shown: str) -> None:
    """1 - 1e-17 is 1.0 to a processor, and no certificate is sure."""
    assert client.confidence(alpha) == shown


def test_colour_files_become_the_models_channels(start, tmp_path: Path, capsys) -> None:
    path = tmp_path / "colour.png"
    Image.new("RGBA", (4, 4), (10, 20, 30, 255)).save(path)
    assert client.main([f"--target={start().target}", str(path), "--n=300"]) == 0
    assert capsys.readouterr().out.startswith("label: ")


def test_files_that_are_no_image_of_the_models_size(start, tmp_path: Path, capsys) -> None:
    target = f"--target={start().target}"
    large = tmp_path / "large.png"
    Image.new("L", (5, 4)).save(large)
    text = tmp_path / "text.png"
    text.write_text("hello")
    damaged = tmp_path / "damaged.png"
    Image.new("L", (4, 4)).save(damaged)
    # The kind of the second chunk is no text.
    damaged.write_bytes(damaged.read_bytes().replace(b"IDAT", b"\x83\x16\xdc\xff", 1))
    vast = tmp_path / "vast.ppm"
    vast.write_bytes(b"P6 99999 99999 255\n")
    for path, reason in (
        (damaged, "not a readable image"),
        (vast, "not a readable image"),
        (large, "is 5x4 pixels, the model takes 4x4"),
        (text, "not a readable image"),
        (tmp_path / "missing.png", "there is no such file"),
    ):
        assert client.main([target, str(path)]) == 1
        error = capsys.readouterr().err
        assert str(path) in error
        assert reason in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "expected one image file, got 0"),
        (["a.png", "b.png"], "expected one image file, got 2"),
        (["--stop=soon", "a.png"], "stop must be fixed, decide:RADIUS"),
        (["--target=127.0.0.1:1", __file__], "127.0.0.1:1: UNAVAILABLE"),
    ],
)
def test_mistakes(capsys, args, text) -> None:
    assert client.main(args) == 1
    assert text in capsys.readouterr().err


def test_refusals_are_passed_on(start, digit, capsys) -> None:
    target = f"--target={start().target}"
    for flags in (["--n=5"], ["--n=5", "--nostream"]):
        assert client.main([target, str(digit), *flags]) == 1
        assert "INVALID_ARGUMENT: n = 5 is too small" in capsys.readouterr().err


def test_what_is_asked_here_goes_through_no_proxy(start, digit, monkeypatch) -> None:
    with proxied(monkeypatch) as proxy:
        assert client.main([f"--target={start().target}", str(digit), "--n=500"]) == 0
        assert proxy.asked == []
