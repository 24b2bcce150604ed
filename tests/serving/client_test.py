"""The client, asked as a user asks it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recording_proxy import proxied

from serving import client


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
    for path, reason in (
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
