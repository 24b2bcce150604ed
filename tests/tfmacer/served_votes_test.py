"""A server that is certified over TLS, and asked again by verify."""

import dataclasses

import portpicker
import pytest
import trustme
from authority import issue
from fake_backend import SMOOTHING, FakeBackend
from recording_proxy import proxied

from serving.common.tls import Tls
from tfmacer import certify, verify


@pytest.fixture
def files(tmp_path):
    """PEM files of the server and of whoever asks it, both of one authority."""
    authority = trustme.CA()
    return (
        issue(tmp_path, authority, "localhost", "server"),
        issue(tmp_path, authority, "operator@example.org", "caller"),
    )


@pytest.fixture
def server(files):
    """A served model of mnist5k's shape behind mutual TLS."""
    backend = FakeBackend(
        probabilities=[0.01] * 3 + [0.91] + [0.01] * 6,
        smoothing=dataclasses.replace(
            SMOOTHING, num_classes=10, input_shape=(28, 28, 1), dataset="mnist5k"
        ),
    )
    port = portpicker.pick_unused_port()
    own, caller = files
    backend.start(port, Tls(own.cert, own.key, caller.ca).server_credentials())
    yield f"localhost:{port}"
    backend.stop()


def test_votes_of_a_server_behind_mutual_tls(server, files, tmp_path, capsys, monkeypatch) -> None:
    log, (own, caller) = tmp_path / "log.tsv", files
    asked = [f"--server={server}", "--model_name=m", "--tls", f"--tls_ca={own.ca}"]
    showing = [f"--tls_cert={caller.cert}", f"--tls_key={caller.key}"]
    plan = [f"--out={log}", "--num_examples=2", "--skip=400", "--n=512"]
    with proxied(monkeypatch) as proxy:
        assert certify.main([*asked, *showing, *plan]) == 0
        assert verify.main([str(log), "--replay", *asked, *showing]) == 0
        assert proxy.asked == []
    assert "2 records verified, all votes drawn again" in capsys.readouterr().out
    # Nobody who does not show a certificate is answered.
    assert verify.main([str(log), "--replay", *asked]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
