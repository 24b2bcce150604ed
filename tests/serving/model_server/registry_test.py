"""Models by name: resolution, labels, reconfiguration, polling."""

import threading
import time
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.configuration import models, read_config_file, single_model
from serving.model_server.registry import Registry
from serving.model_server.status import StatusError
from serving.model_server.versions import LoadPolicy

PATIENCE = 30.0


class FakeServable:
    def __init__(self, path: Path) -> None:
        if (path / "broken").exists():
            raise OSError("half written")
        self.path = path

    def close(self) -> None:
        pass


@pytest.fixture
def registry():
    made = Registry(LoadPolicy(FakeServable, 0, 0.0), poll_seconds=0.02)  # type: ignore[arg-type]
    yield made
    made.stop()


def _spec(text: str) -> model_pb2.ModelSpec:
    return text_format.Parse(text, model_pb2.ModelSpec())


def _config(text: str) -> model_server_config_pb2.ModelServerConfig:
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def _entry(name: str, base: Path, rest: str = "") -> str:
    return f"config {{ name: '{name}' base_path: '{base}' model_platform: 'tensorflow' {rest} }}"


def _version(registry: Registry, spec: str) -> int:
    with registry.use(_spec(spec)) as (number, _):
        return number


def _eventually(condition) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "never came true"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "ModelSpec has no name specified."),
        ("name: 'x'", r"Servable not found for request: Latest\(x\)"),
        ("name: 'x' version { value: 3 }", r"Servable not found for request: Specific\(x, 3\)"),
        ("name: 'm' version {}", r"Servable not found for request: Specific\(m, 0\)"),
        ("name: 'm' version_label: 'new'", "Unrecognized servable version label: new"),
    ],
)
def test_refusals(registry: Registry, tmp_path: Path, spec: str, text: str) -> None:
    (tmp_path / "1").mkdir()
    registry.configure(single_model("m", str(tmp_path)))
    with pytest.raises(StatusError, match=text), registry.use(_spec(spec)):
        pass


def test_statuses_look_at_the_number_and_never_at_the_label(registry, tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
    registry.configure(_config(f"model_config_list {{ {_entry('m', tmp_path, ALL)} }}"))
    _eventually(lambda: len(registry.statuses(_spec("name: 'm'"))) == 2)
    labelled = registry.statuses(_spec("name: 'm' version_label: 'whatever'"))
    assert [status.version for status in labelled] == [2, 1]
    one = registry.statuses(_spec("name: 'm' version { value: 1 }"))
    assert [status.version for status in one] == [1]
    with pytest.raises(StatusError, match="Could not find version 0 of model m"):
        registry.statuses(_spec("name: 'm' version {}"))
    with pytest.raises(StatusError, match="Could not find any versions of model x"):
        registry.statuses(_spec("name: 'x'"))


ALL = "model_version_policy { all {} }"


def test_new_versions_are_found_and_old_ones_retired(registry, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    registry.configure(single_model("m", str(tmp_path)))
    registry.start()
    assert _version(registry, "name: 'm'") == 1
    (tmp_path / "2").mkdir()
    _eventually(lambda: _version(registry, "name: 'm'") == 2)
    _eventually(
        lambda: (
            [s.state.name for s in registry.statuses(_spec("name: 'm'"))] == ["AVAILABLE", "END"]
        )
    )


def test_a_broken_version_leaves_the_good_one_serving(registry, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    registry.configure(single_model("m", str(tmp_path)))
    registry.start()
    half = tmp_path / "half"
    half.mkdir()
    (half / "broken").touch()
    half.rename(tmp_path / "2")
    _eventually(lambda: registry.statuses(_spec("name: 'm'"))[0].error is not None)
    assert _version(registry, "name: 'm'") == 1


def test_vanished_versions_are_unloaded_unless_told_otherwise(tmp_path: Path) -> None:
    for kept in (False, True):
        base = tmp_path / str(kept)
        (base / "1").mkdir(parents=True)
        registry = Registry(
            LoadPolicy(FakeServable, 0, 0.0),  # type: ignore[arg-type]
            poll_seconds=0.02,
            versions_always_present=kept,
        )
        registry.configure(single_model("m", str(base)))
        registry.start()
        (base / "1").rmdir()
        if kept:
            registry._look()
            assert _version(registry, "name: 'm'") == 1
        else:
            _eventually(lambda r=registry: r.statuses(_spec("name: 'm'"))[0].state.name == "END")
        registry.stop()


def test_a_missing_base_path_changes_nothing(registry, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "1").mkdir(parents=True)
    registry.configure(single_model("m", str(base)))
    base.rename(tmp_path / "moved")
    registry._look()
    assert _version(registry, "name: 'm'") == 1


def test_no_loadable_version_fails_the_start_with_its_reason(registry, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "broken").touch()
    with pytest.raises(
        StatusError,
        match=r"^1 servable\(s\) did not become available: \{\{name: m version: 1\} due to error: "
        r"OSError: half written\}$",
    ):
        registry.configure(single_model("m", str(tmp_path)))


def test_a_model_without_a_version_is_waited_for(registry, tmp_path: Path) -> None:
    registry.start()
    later = threading.Timer(0.2, (tmp_path / "1").mkdir)
    later.start()
    registry.configure(single_model("m", str(tmp_path)), timeout=PATIENCE)
    assert _version(registry, "name: 'm'") == 1
    with pytest.raises(StatusError, match="did not become available"):
        registry.configure(single_model("n", str(tmp_path / "none")), timeout=0.05)


def test_labels_follow_the_configuration(tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
    registry = Registry(
        LoadPolicy(FakeServable, 0, 0.0),  # type: ignore[arg-type]
        poll_seconds=0,
        labels_for_unavailable=True,
    )
    labels = "version_labels { key: 'stable' value: 1 }"
    registry.configure(_config(f"model_config_list {{ {_entry('m', tmp_path, ALL + labels)} }}"))
    _eventually(lambda: len(registry.statuses(_spec("name: 'm'"))) == 2)
    _eventually(lambda: all(s.state == 30 for s in registry.statuses(_spec("name: 'm'"))))
    assert _version(registry, "name: 'm' version_label: 'stable'") == 1
    moved = labels.replace("1", "2")
    registry.configure(_config(f"model_config_list {{ {_entry('m', tmp_path, ALL + moved)} }}"))
    assert _version(registry, "name: 'm' version_label: 'stable'") == 2
    # A label that is in use may never be moved to nothing.
    gone = labels.replace("1", "9")
    with pytest.raises(StatusError) as caught:
        registry.configure(_config(f"model_config_list {{ {_entry('m', tmp_path, ALL + gone)} }}"))
    assert caught.value.code.name == "FAILED_PRECONDITION"
    assert caught.value.message == (
        "Request to assign label to version 9 of model m, "
        "which is not currently available for inference"
    )
    assert _version(registry, "name: 'm' version_label: 'stable'") == 2
    registry.stop()


def test_labels_at_the_start_need_the_flag(registry, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    labels = "version_labels { key: 'stable' value: 1 }"
    flag = "--allow_version_labels_for_unavailable_models"
    with pytest.raises(StatusError, match=f"not currently available for inference; {flag}"):
        registry.configure(_config(f"model_config_list {{ {_entry('m', tmp_path, labels)} }}"))


def test_another_base_path_answers_only_once_a_version_of_it_is_loaded(tmp_path: Path) -> None:
    """No call under load is refused; a path whose version does not load changes nothing."""
    go_on, base = threading.Event(), {name: tmp_path / name for name in ("old", "bad", "new")}

    class Slow(FakeServable):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            if path.parent == base["new"]:
                assert go_on.wait(PATIENCE)

    for folder in base.values():
        (folder / "1").mkdir(parents=True)
    (base["bad"] / "1" / "broken").touch()
    registry = Registry(LoadPolicy(Slow, 0, 0.0), poll_seconds=0.02)  # type: ignore[arg-type]
    registry.configure(single_model("m", str(base["old"])))

    def served() -> Path:
        with registry.use(_spec("name: 'm'")) as (_, servable):
            assert isinstance(servable, Slow)
            return servable.path.parent

    with pytest.raises(StatusError, match="half written"):
        registry.configure(single_model("m", str(base["bad"])))
    assert served() == base["old"]
    swap = threading.Thread(
        target=registry.configure, args=(single_model("m", str(base["new"])),), daemon=True
    )
    swap.start()
    seen = [served() for _ in range(1000)]
    (status,) = registry.statuses(_spec("name: 'm'"))
    assert status.state.name == "AVAILABLE"
    go_on.set()
    while swap.is_alive():
        seen.append(served())
    assert set(seen) <= {base["old"], base["new"]}
    assert served() == base["new"]
    registry.stop()


def test_configurations_without_versions_pile_nothing_up(registry, tmp_path: Path) -> None:
    (tmp_path / "good" / "1").mkdir(parents=True)
    registry.configure(single_model("m", str(tmp_path / "good")))
    for number in range(50):
        with pytest.raises(StatusError, match="did not become available"):
            registry.configure(single_model("m", str(tmp_path / f"{number}")), timeout=0.0)
        assert _version(registry, "name: 'm'") == 1
    _eventually(lambda: sum(t.name == "versions-m" for t in threading.enumerate()) == 2)


def test_no_configuration_waits_longer_than_its_caller_for_calls_of_a_model_that_goes(
    registry, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
    registry.configure(single_model("a", str(tmp_path / "a")))
    with registry.use(_spec("name: 'a'")):
        with pytest.raises(StatusError, match="did not become available"):
            registry.configure(single_model("b", str(tmp_path / "b")), timeout=0.0)
        assert registry._versions["b"].wait_available(PATIENCE)
        assert _version(registry, "name: 'b'") == 1


def test_a_configuration_is_the_whole_truth(registry, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
    registry.configure(_config(f"model_config_list {{ {_entry('a', tmp_path / 'a')} }}"))
    registry.configure(_config(f"model_config_list {{ {_entry('b', tmp_path / 'b')} }}"))
    assert _version(registry, "name: 'b'") == 1
    with pytest.raises(StatusError, match=r"Latest\(a\)"), registry.use(_spec("name: 'a'")):
        pass


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ("config { name: 'm' base_path: '/a' }", "neither model_type"),
        ("config { name: 'm' base_path: '/a' model_platform: 'tflite' }", "must be tensorflow"),
        (
            "config { name: 'm' base_path: 'a' model_platform: 'tensorflow' }",
            r"absolute path or URI; got base_path\(\)=a",
        ),
        (
            r"config { name: 'm' base_path: '/a\000' model_platform: 'tensorflow' }",
            r"absolute path or URI; got base_path\(\)=/a",
        ),
        (
            "config { name: 'm' base_path: '/a' model_platform: 'tensorflow' }" * 2,
            "list model m multiple times",
        ),
    ],
)
def test_configurations_that_contradict_themselves(entries: str, text: str) -> None:
    with pytest.raises(StatusError, match=text):
        models(_config(f"model_config_list {{ {entries} }}"))


def test_config_files(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(
        """
        model_config_list: {
          config: {  # commas and comments are fine
            name: "m", base_path: "/models/m", model_platform: "tensorflow",
            model_version_policy: { specific: { versions: 1, versions: 2 } },
            version_labels: { key: "stable", value: 1 }
          }
        }
        """
    )
    model = models(read_config_file(file))["m"]
    assert (model.base_path, dict(model.labels)) == (Path("/models/m"), {"stable": 1})
    assert list(model.policy.specific.versions) == [1, 2]
    for wrong in (b"model_config_list { what }", b"\xff"):
        file.write_bytes(wrong)
        with pytest.raises(StatusError, match=r"Error parsing text-format ModelServerConfig"):
            read_config_file(file)


def test_the_old_name_of_the_platform_is_taken(tmp_path: Path, caplog) -> None:
    text = f'config {{ name: "m" base_path: "{tmp_path}" model_type: TENSORFLOW }}'
    (model,) = models(_config(f"model_config_list {{ {text} }}")).values()
    assert model.base_path == tmp_path
    assert "model m: model_type is deprecated" in caplog.text
