"""Version directories are chosen as TensorFlow Serving chooses them."""

import logging
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.configuration import Model
from serving.model_server.discovery import Discovery


def _model(base: Path, policy: str = "") -> Model:
    config = text_format.Parse(
        f"model_version_policy {{ {policy} }}", model_server_config_pb2.ModelConfig()
    )
    return Model("m", base, config.model_version_policy)


def aspired_versions(model: Model) -> dict[int, Path] | None:
    return Discovery().aspired(model)


def _make(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).mkdir()
    return base


def test_only_numbers_are_versions(tmp_path: Path) -> None:
    _make(tmp_path, "00000123", "v1", "1.0", "1.tmp", ".9.tmp", "-4", "assets", "²", "٣", "9" * 20)
    (tmp_path / "77").write_text("a file")
    assert aspired_versions(_model(tmp_path, "all {}")) == {123: tmp_path / "00000123"}


def test_two_spellings_of_a_number_warn_and_the_later_name_wins(tmp_path: Path, caplog) -> None:
    _make(tmp_path, "7", "007")
    with caplog.at_level(logging.WARNING):
        assert aspired_versions(_model(tmp_path)) == {7: tmp_path / "7"}
    assert "are both 7" in caplog.text


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [10]),
        ("latest {}", [10]),
        ("latest { num_versions: 2 }", [9, 10]),
        ("latest { num_versions: 5 }", [1, 9, 10]),
        ("all {}", [1, 9, 10]),
        ("specific { versions: 1 versions: 9 }", [1, 9]),
        ("specific { versions: 9 versions: 11 }", [9]),
    ],
)
def test_policies(tmp_path: Path, policy: str, expected: list[int]) -> None:
    _make(tmp_path, "1", "9", "10")
    assert sorted(aspired_versions(_model(tmp_path, policy)) or {}) == expected


def test_an_unreadable_base_path_is_not_an_empty_one(tmp_path: Path) -> None:
    assert aspired_versions(_model(tmp_path / "missing")) is None
    assert aspired_versions(_model(tmp_path)) == {}


def test_an_oddity_is_said_once_and_again_when_it_comes_back(tmp_path: Path, caplog) -> None:
    discovery, model = Discovery(), _model(tmp_path)
    for _ in range(3):
        discovery.aspired(model)
    assert caplog.text.count("no versions found") == 1
    _make(tmp_path, "1")
    discovery.aspired(model)
    (tmp_path / "1").rmdir()
    discovery.aspired(model)
    assert caplog.text.count("no versions found") == 2
